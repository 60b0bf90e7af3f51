//! The C interface as a C program sees it: compiled with the system's C compiler against the header and both libraries.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use conformance::data::workspace;
use conformance::desk::Desk;

fn here() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The folder with the libraries. Cargo does not build them for a test, so this asks it to, once.
fn libraries() -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let built = BUILT.get_or_init(|| {
        let exe = std::env::current_exe().expect("a running test knows its own path");
        // <target>/<profile>/deps/<test>-<hash>
        let folder = exe.ancestors().nth(2).expect("tests lie two folders below the target folder").to_path_buf();
        let profile = match folder.file_name().and_then(|n| n.to_str()) {
            Some("debug") | None => "dev",
            Some(name) => name,
        };
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.args(["build", "-q", "-p", "lora-runtime-c", "--profile", profile, "--target-dir"]);
        run(cargo.arg(folder.parent().expect("a profile folder lies in a target folder")).current_dir(here()));
        folder
    });
    built.clone()
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{command:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// Compiles a C program; `library` is what it is linked with.
fn compile(source: &Path, out: &Path, library: &[&str]) {
    let mut cc = Command::new(std::env::var_os("CC").unwrap_or_else(|| "cc".into()));
    cc.args(["-std=c11", "-Wall", "-Wextra", "-Werror", "-O1", "-I"]).arg(here().join("include"));
    run(cc.arg(source).arg("-o").arg(out).args(library).args(["-lpthread", "-ldl", "-lm"]));
}

fn demo(desk: &Desk) -> PathBuf {
    let (demo, lpk) = (workspace().join("models/demo"), desk.path("demo.lpk"));
    let call = desk.pack("merge").arg("--base").arg(demo.join("tiny-base"));
    let call = call.arg("--adapter").arg(demo.join("tiny-home-control")).args(["--quant", "q8"]);
    desk.produce(call, &lpk).unwrap_or_else(|miss| panic!("{miss:?}"));
    lpk
}

const PROMPT: &str = "<|user|>Dock the robot right away<|end|><|assistant|>";
const ANSWER: &str = "{\"fn\":\"vacuum\",\"act\":\"dock\"}\n";

/// Every function, good and bad arguments, with the static and with the shared library; the example; under valgrind
/// where there is one.
#[test]
fn c_programs_work_with_both_libraries() {
    let desk = Desk::new(&workspace().join("models/demo")).unwrap();
    let model = demo(&desk);
    let folder = libraries();
    let archive = folder.join("liblora_runtime.a");
    let check = desk.path("check");
    compile(&here().join("tests/check.c"), &check, &[archive.to_str().unwrap()]);
    assert_eq!(run(Command::new(&check).arg(&model).arg(PROMPT)), ANSWER);

    // The shared library under the name that programs ask for.
    let example = desk.path("example");
    let soname = desk.path("liblora_runtime.so.0");
    std::fs::copy(folder.join("liblora_runtime.so"), &soname).unwrap();
    compile(&here().join("examples/generate.c"), &example, &[soname.to_str().unwrap()]);
    let path = soname.parent().unwrap().to_path_buf();
    assert_eq!(run(Command::new(&example).arg(&model).arg(PROMPT).env("LD_LIBRARY_PATH", path)), ANSWER);

    let missing =
        Command::new(&example).args(["/no/model", "x"]).env("LD_LIBRARY_PATH", desk.path("")).output().unwrap();
    assert_eq!(missing.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&missing.stderr).contains("input/output error: path"), "{missing:?}");
}

/// Adapters beside a base; under several threads too.
#[test]
fn c_programs_switch_adapters() {
    let desk = Desk::new(&workspace().join("models/demo")).unwrap();
    let demo = workspace().join("models/demo");
    let make = |call, name: &str| {
        let out = desk.path(name);
        desk.produce(call, &out).unwrap_or_else(|miss| panic!("{miss:?}"));
        out
    };
    let base = make(desk.pack("merge").arg("--base").arg(demo.join("tiny-base")).args(["--quant", "q8"]), "base.lpk");
    let call = desk.pack("adapter").arg("--base").arg(demo.join("tiny-base")).arg("--adapter");
    let adapter = make(call.arg(demo.join("tiny-home-control")), "adapter.lpk");
    let stranger = workspace().join("tests/data/fixtures/gemma_mqa");
    let call = desk.pack("adapter").arg("--base").arg(stranger.join("base")).arg("--adapter");
    let other = make(call.arg(stranger.join("adapter")), "other.lpk");
    let program = desk.path("adapters");
    compile(&here().join("tests/adapters.c"), &program, &[libraries().join("liblora_runtime.a").to_str().unwrap()]);
    assert_eq!(run(Command::new(&program).args([&base, &adapter, &other]).arg(PROMPT)), ANSWER);
}

/// The README's C program, as printed there.
#[test]
fn the_readmes_program_works() {
    let desk = Desk::new(&workspace().join("models/demo")).unwrap();
    std::fs::rename(demo(&desk), desk.path("home.lpk")).unwrap();
    let readme = std::fs::read_to_string(workspace().join("README.md")).unwrap();
    let block = readme.split_once("```c\n").and_then(|(_, rest)| rest.split_once("```")).expect("a C program").0;
    let (source, program) = (desk.path("readme.c"), desk.path("readme"));
    std::fs::write(&source, block).unwrap();
    compile(&source, &program, &[libraries().join("liblora_runtime.a").to_str().unwrap()]);
    assert_eq!(run(Command::new(&program).current_dir(desk.path(""))), ANSWER.trim_end());
}

/// What `lora-pack embed` writes for C, as source and as object file, is the packed file, aligned for the runtime.
#[test]
fn embedded_models_are_opened() {
    let desk = Desk::new(&workspace()).unwrap();
    let make = |call, name: &str| {
        let out = desk.path(name);
        desk.produce(call, &out).unwrap_or_else(|miss| panic!("{miss:?}"));
        out
    };
    let base = workspace().join("tests/data/fixtures/xlm_roberta_seqcls");
    let call = desk.pack("merge").arg("--base").arg(base.join("base")).arg("--adapter").arg(base.join("adapter"));
    let lpk = make(call.args(["--quant", "q8"]), "labels.lpk");
    let written = make(desk.pack("embed").arg(&lpk).args(["--name", "written"]), "written.c");
    let mut sources = vec![written];
    let mut program = String::from(
        "#include <stdio.h>\n#include \"lora_runtime.h\"\nstatic int one(const unsigned char *bytes, size_t len) {\n\
         static lora_model model; lora_error e;\n\
         return lora_model_open(&model, bytes, len, &e) || fwrite(bytes, 1, len, stdout) != len; }\n",
    );
    let mut calls = String::from("one(written, written_len)");
    if cfg!(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"))) {
        let call = desk.pack("embed").arg(&lpk).args(["--name", "linked", "--target", std::env::consts::ARCH]);
        sources.push(make(call, "linked.o"));
        calls += " || one(linked, linked_len)";
    }
    for name in ["written", "linked"] {
        program += &format!("extern const unsigned char {name}[]; extern const size_t {name}_len;\n");
    }
    program += &format!("int main(void) {{ return {calls}; }}\n");
    let (main, out) = (desk.path("main.c"), desk.path("main"));
    std::fs::write(&main, program).unwrap();
    let archive = libraries().join("liblora_runtime.a");
    let given: Vec<_> = sources.iter().chain([&archive]).map(|p| p.to_str().unwrap()).collect();
    compile(&main, &out, &given);
    let printed = Command::new(&out).output().unwrap();
    assert!(printed.status.success(), "{printed:?}");
    assert!(printed.stdout == std::fs::read(&lpk).unwrap().repeat(sources.len()), "other bytes than the file's");
}

/// What `install` lays down serves pkg-config and CMake.
#[test]
fn the_installed_library_is_found() {
    let desk = Desk::new(&workspace().join("models/demo")).unwrap();
    let prefix = desk.path("prefix");
    run(Command::new(here().join("install")).arg(&prefix).arg(libraries()));
    let example = here().join("examples/generate.c");
    let answers = |program: &Path| {
        let output = Command::new(program).env("LD_LIBRARY_PATH", prefix.join("lib")).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "the usage of {}: {output:?}", program.display());
    };
    let there = |tool: &str| {
        let found = Command::new(tool).arg("--version").output().is_ok();
        if !found {
            conformance::skip(&format!("installed library with {tool}"), "it is not installed");
        }
        found
    };
    if there("pkg-config") {
        let path = prefix.join("lib/pkgconfig");
        let flags =
            run(Command::new("pkg-config").args(["--cflags", "--libs", "lora_runtime"]).env("PKG_CONFIG_PATH", path));
        let program = desk.path("by-pkg-config");
        run(Command::new("cc").arg(&example).arg("-o").arg(&program).args(flags.split_whitespace()));
        answers(&program);
    }
    if there("cmake") {
        let (project, build) = (desk.path("project"), desk.path("build"));
        std::fs::create_dir(&project).unwrap();
        let text = format!(
            "cmake_minimum_required(VERSION 3.18)\nproject(p C)\nfind_package(lora_runtime 0.1 REQUIRED)\n\
             foreach(kind lora_runtime static)\nadd_executable(by-${{kind}} {:?})\n\
             target_link_libraries(by-${{kind}} lora_runtime::${{kind}})\nendforeach()\n",
            example.display().to_string()
        );
        std::fs::write(project.join("CMakeLists.txt"), text).unwrap();
        let prefix = format!("-DCMAKE_PREFIX_PATH={}", prefix.display());
        run(Command::new("cmake").arg("-S").arg(&project).arg("-B").arg(&build).arg(prefix));
        run(Command::new("cmake").arg("--build").arg(&build));
        answers(&build.join("by-lora_runtime"));
        answers(&build.join("by-static"));
    }
}

/// The header numbers the statuses as the sources do. (`header.rs` holds its functions and structs equal to theirs.)
#[test]
fn the_header_numbers_statuses() {
    let header = std::fs::read_to_string(here().join("include/lora_runtime.h")).unwrap();
    let status = std::fs::read_to_string(here().join("src/status.rs")).unwrap();
    for line in status.lines().filter(|l| l.trim().starts_with("ErrorKind::")) {
        let Some((kind, number)) = line.trim().trim_end_matches(',').split_once(" => ") else { continue };
        let mut name = String::from("LORA");
        for c in kind.trim_start_matches("ErrorKind::").chars() {
            if c.is_ascii_uppercase() {
                name.push('_');
            }
            name.push(c.to_ascii_uppercase());
        }
        assert!(header.contains(&format!("{name} = {number},")), "{name} = {number}");
    }
}
