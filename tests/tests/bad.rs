//! Malformed inputs are refused by name, quickly and without a trace; unusual valid ones change nothing.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use conformance::case::{Case, ModeKind};
use conformance::process::{Call, Finished};
use conformance::tensors::Archive;
use conformance::tools::tools;
use conformance::{checks, data, in_parallel, ledger, say, skip};
use serde::Deserialize;

/// A refusal may take this long …
const TIME: Duration = Duration::from_secs(10);
/// … and this much memory.
const MEMORY: u64 = 512 << 20;

/// `case.json` of a malformed or unusual input.
#[derive(Deserialize)]
struct Input {
    name: String,
    base: String,
    adapter: String,
    expect: Expect,
    must_name: Vec<Vec<String>>,
    #[serde(skip)]
    dir: PathBuf,
}

#[derive(Clone, Copy, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
enum Expect {
    /// Refused.
    Error,
    /// Refused, or accepted with a warning that says the same.
    ErrorOrWarning,
    /// Refused, or accepted for a reason that the kit gives.
    ErrorOrOk,
    /// Accepted, with exactly the results of the sound case.
    Ok,
}

/// The malformed and unusual cases below `root`: all folders but `_good`.
fn inputs(root: &Path) -> Result<Vec<Input>> {
    let mut found = Vec::new();
    for dir in data::case_folders(root)?.into_iter().filter(|d| !d.ends_with("_good")) {
        let mut input: Input = serde_json::from_str(&std::fs::read_to_string(dir.join("case.json"))?)
            .with_context(|| format!("reading {}", dir.display()))?;
        input.dir = dir;
        found.push(input);
    }
    Ok(found)
}

fn check_all(root: &Path) {
    let all = inputs(root).expect("the cases themselves can be read");
    assert!(!all.is_empty(), "no cases in {}", root.display());
    let mut verbs = vec!["merge"];
    if tools().pack("adapter", Path::new("/")).arg("--help").run().is_ok_and(|d| d.code == Some(0)) {
        verbs.push("adapter");
    } else {
        skip("malformed inputs of `lora-pack adapter`", "the verb does not exist");
    }
    let before = [snapshot(root)];
    let reports = in_parallel(&all, |input| -> Vec<String> {
        let check = |verb: &&str| check(root, input, verb).err().map(|e| format!("{} ({verb}): {e:#}", input.name));
        verbs.iter().filter_map(check).collect()
    });
    let mut wrong: Vec<String> = reports.into_iter().flatten().collect();
    if before != [snapshot(root)] {
        wrong.push("an input folder was written to".into());
    }
    say(&format!("malformed and unusual inputs: {} cases × {verbs:?}, {} wrong", all.len(), wrong.len()));
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

fn check(root: &Path, input: &Input, verb: &str) -> Result<()> {
    let tmp = tempfile::tempdir()?;
    let (work, out) = (tmp.path().join("work"), tmp.path().join("out"));
    std::fs::create_dir(&work)?;
    std::fs::create_dir(&out)?;
    let lpk = out.join("x.lpk");
    let call = pack(verb, &work, &input.dir.join(&input.base), &input.dir.join(&input.adapter), &lpk);
    let done = call.wall(TIME).run()?;
    ensure!(!done.timed_out, "no answer after {} s", TIME.as_secs());
    ensure!(done.peak <= MEMORY, "{} MB of memory", done.peak >> 20);
    ensure!(listing(&work)?.is_empty(), "left behind: {:?}", listing(&work)?);
    let refused = || judge_refusal(&done, &input.must_name, &out);
    match input.expect {
        Expect::Error => refused(),
        Expect::ErrorOrOk | Expect::ErrorOrWarning if done.code != Some(0) => refused(),
        Expect::ErrorOrWarning => named(&done, &input.must_name),
        Expect::ErrorOrOk => Ok(()),
        Expect::Ok => {
            ensure!(done.code == Some(0), "{}: {}", done.ending(), done.message());
            ensure!(listing(&out)? == ["x.lpk"], "written: {:?}", listing(&out)?);
            if verb == "merge" { same_as_good(root, &lpk, tmp.path()) } else { Ok(()) }
        }
    }
}

fn pack(verb: &str, folder: &Path, base: &Path, adapter: &Path, out: &Path) -> Call {
    let call = tools().pack(verb, folder).arg("--base").arg(base).arg("--adapter").arg(adapter);
    call.args(["--quant", "f32", "-o"]).arg(out)
}

/// An error means: a plain exit code that is no panic's, a message that names the matter, no file.
fn judge_refusal(done: &Finished, must_name: &[Vec<String>], out: &Path) -> Result<()> {
    match done.code {
        Some(0) => bail!("accepted"),
        Some(101) => bail!("panicked: {}", done.message()),
        Some(code) if code < 126 => {}
        _ => bail!("{}: {}", done.ending(), done.message()),
    }
    ensure!(listing(out)?.is_empty(), "refused, but left {:?}", listing(out)?);
    named(done, must_name)
}

fn named(done: &Finished, must_name: &[Vec<String>]) -> Result<()> {
    let said = done.stderr.to_lowercase();
    ensure!(!said.trim().is_empty(), "no message");
    for group in must_name {
        let found = group.iter().any(|word| said.contains(&word.to_lowercase()));
        ensure!(found, "names none of {group:?}: {}", done.stderr.trim());
    }
    Ok(())
}

/// The pack gives, bit for bit, the outputs that the sound inputs give.
fn same_as_good(root: &Path, lpk: &Path, tmp: &Path) -> Result<()> {
    let good = Case::read(&root.join("_good"))?;
    let sound = tmp.join("good.lpk");
    let mode = good.modes.iter().find(|m| m.kind == ModeKind::Adapter).context("_good has no adapter")?;
    let done = tools().pack("merge", tmp).args(good.inputs(mode)).args(["--quant", "f32", "-o"]).arg(&sound).run()?;
    ensure!(done.code == Some(0), "the sound case: {}", done.message());
    for run in &good.runs {
        let ids = run.input_ids.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
        let outputs = [lpk, &sound].map(|file| -> Result<Archive> {
            let out = tmp.join("out.safetensors");
            let done = tools().run("raw", tmp).arg(file).args(["--ids", &ids, "--out"]).arg(&out).run()?;
            ensure!(done.code == Some(0), "running it: {}", done.message());
            Archive::read(&out)
        });
        let [got, expected] = outputs;
        let (got, expected) = (got?, expected?);
        for name in expected.names() {
            ensure!(got.get(name)? == expected.get(name)?, "run {}: {name} differs from the sound case's", run.id);
        }
    }
    Ok(())
}

/// Names in a folder, sorted.
fn listing(folder: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// Every file below a folder with size and time of last change.
fn snapshot(folder: &Path) -> BTreeSet<(PathBuf, u64, Option<SystemTime>)> {
    let mut files = BTreeSet::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        match entry.metadata() {
            Ok(meta) if meta.is_dir() => files.extend(snapshot(&path)),
            Ok(meta) => {
                files.insert((path, meta.len(), meta.modified().ok()));
            }
            Err(_) => {}
        }
    }
    files
}

fn sound_case(root: &Path) {
    let reports = checks::case(&root.join("_good")).expect("the sound case can be read");
    ledger::enforce("the sound case", &vec![("_good".into(), reports)]);
}

#[test]
fn committed_inputs() {
    let root = data::committed().join("bad");
    sound_case(&root);
    check_all(&root);
}

#[test]
fn conformance_kit() {
    if let Some(root) = data::shared_fixtures("the kit's malformed inputs") {
        check_all(&root.join("bad"));
    }
}

/// An index that points out of its folder is refused before that file is opened: the answer does not depend on
/// whether the file is there, and a pipe in its place, which would block whoever opens it, does not block.
#[test]
fn files_outside_the_folder_are_not_opened() {
    let bad = data::committed().join("bad");
    let tmp = tempfile::tempdir().expect("a temporary folder");
    let (base, outside) = (tmp.path().join("base"), tmp.path().join("outside.safetensors"));
    std::fs::create_dir(&base).expect("a folder");
    let from = bad.join("index_path_traversal");
    for name in listing(&from.join("base")).expect("the case is there") {
        std::fs::copy(from.join("base").join(&name), base.join(&name)).expect("copied");
    }
    let index = base.join("model.safetensors.index.json");
    let relative = std::fs::read_to_string(&index).expect("the index");
    assert!(relative.contains("\"../outside.safetensors\""), "the case is not what it was");
    let absolute = relative.replace("../outside.safetensors", &outside.display().to_string());
    for (form, text) in [("relative", relative), ("absolute", absolute)] {
        std::fs::write(&index, text).expect("written");
        let answer = |what: &str| -> String {
            let out = tmp.path().join("x.lpk");
            let done = pack("merge", tmp.path(), &base, &bad.join("_good/adapter"), &out).wall(TIME).run();
            let done = done.expect("it can be started");
            assert!(!done.timed_out, "{form} path: blocked on {what} outside the folder");
            assert!(matches!(done.code, Some(1..=125)) && done.code != Some(101), "{form}: {}", done.ending());
            assert!(!out.exists(), "{form} path: a pack was written");
            done.stderr
        };
        std::fs::copy(from.join("outside.safetensors"), &outside).expect("copied");
        let there = answer("a file");
        std::fs::remove_file(&outside).expect("removed");
        assert_eq!(answer("no file"), there, "{form} path: the answer depends on a file outside the folder");
        if std::process::Command::new("mkfifo").arg(&outside).status().is_ok_and(|s| s.success()) {
            assert_eq!(answer("a pipe"), there, "{form} path: the answer depends on a pipe outside the folder");
            std::fs::remove_file(&outside).expect("removed");
        } else {
            skip("the pipe outside the folder", "mkfifo is not there");
        }
    }
}
