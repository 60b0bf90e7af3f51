//! The built programs under test.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::process::Call;

/// Paths of the programs.
#[derive(Debug)]
pub struct Tools {
    pack: PathBuf,
    run: PathBuf,
}

impl Tools {
    /// A call of `lora-pack` with this verb.
    #[must_use]
    pub fn pack(&self, verb: &str, folder: &Path) -> Call {
        Call::new(&self.pack, folder).arg(verb)
    }

    /// A call of `lora-run` with this verb.
    #[must_use]
    pub fn run(&self, verb: &str, folder: &Path) -> Call {
        Call::new(&self.run, folder).arg(verb)
    }
}

/// The programs, built from the present sources in the profile of the running test.
///
/// Cargo does not build another package's programs for a test, and a program left from an earlier build would
/// be judged in the place of the present one; so this asks cargo, once per test executable. With
/// `LORA_PACK_BIN_DIR` set, the programs in that folder are taken as they are.
///
/// # Panics
/// If the programs cannot be built or are not there: nothing can be tested then.
pub fn tools() -> &'static Tools {
    static TOOLS: OnceLock<Tools> = OnceLock::new();
    TOOLS.get_or_init(|| {
        let folder = match std::env::var_os("LORA_PACK_BIN_DIR") {
            Some(folder) => PathBuf::from(folder),
            None => build(),
        };
        let [pack, run] =
            ["lora-pack", "lora-run"].map(|name| folder.join(format!("{name}{}", std::env::consts::EXE_SUFFIX)));
        for path in [&pack, &run] {
            assert!(path.is_file(), "{} is not there; build it with `cargo build --release`", path.display());
        }
        Tools { pack, run }
    })
}

/// Builds both programs into the folder where this test's profile keeps its programs, and returns that folder.
fn build() -> PathBuf {
    let exe = std::env::current_exe().expect("a running test knows its own path");
    // <target>[/<triple>]/<profile>/deps/<test>-<hash>
    let profile_dir = exe.ancestors().nth(2).expect("tests lie two folders below the target folder").to_path_buf();
    let above = profile_dir.parent().expect("a profile folder lies in a target folder");
    let (target, triple) = if above.join("CACHEDIR.TAG").is_file() {
        (above, None)
    } else {
        (above.parent().unwrap_or(above), above.file_name())
    };
    let profile = match profile_dir.file_name().and_then(|n| n.to_str()) {
        Some("debug") | None => "dev",
        Some(name) => name,
    };
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // The whole workspace's features, as `cargo build` without a package has them: its programs are then built once.
    cargo.args(["build", "-q", "--workspace", "--bin", "lora-pack", "--bin", "lora-run", "--profile", profile]);
    cargo.current_dir(crate::data::workspace()).arg("--target-dir").arg(target);
    if let Some(triple) = triple {
        cargo.arg("--target").arg(triple);
    }
    let status = cargo.status().expect("cargo can be started");
    assert!(status.success(), "building lora-pack and lora-run failed ({status})");
    profile_dir
}
