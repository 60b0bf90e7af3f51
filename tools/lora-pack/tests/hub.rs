//! Downloads, from a server on this machine that speaks as much of the Hub's protocol as its client needs.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use sha2::{Digest, Sha256};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A server with one repository, `org/name`, at one commit.
struct Server {
    address: String,
    /// Files that were sent whole.
    sent: Arc<AtomicUsize>,
}

impl Server {
    /// Serves `files`: name, content, and the hash that it claims for the content (none for small files).
    fn start(files: BTreeMap<&'static str, (Vec<u8>, Option<String>)>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let sent = Arc::new(AtomicUsize::new(0));
        let counter = sent.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (files, counter) = (files.clone(), counter.clone());
                std::thread::spawn(move || answer(stream.unwrap(), &files, &counter));
            }
        });
        Self { address, sent }
    }
}

fn answer(mut stream: TcpStream, files: &BTreeMap<&'static str, (Vec<u8>, Option<String>)>, sent: &AtomicUsize) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut request = String::new();
    reader.read_line(&mut request).unwrap();
    let mut from = None;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap() == 0 || line == "\r\n" {
            break;
        }
        let line = line.to_ascii_lowercase();
        if let Some(range) = line.strip_prefix("range: bytes=") {
            let (start, end) = range.trim().split_once('-').unwrap();
            from = Some((start.parse::<usize>().unwrap(), end.parse::<usize>().ok()));
        }
    }
    let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut reply = |status: &str, headers: String, body: &[u8]| {
        let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n{headers}\r\n", body.len());
        stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body)).ok();
    };
    if path.starts_with("/api/models/org/name/revision/") {
        let revision = path.rsplit('/').next().unwrap();
        if revision != "main" && revision != COMMIT {
            return reply("404 Not Found", String::new(), b"");
        }
        let names: Vec<_> = files.keys().map(|n| serde_json::json!({"rfilename": n})).collect();
        return reply(
            "200 OK",
            String::new(),
            serde_json::json!({"sha": COMMIT, "siblings": names}).to_string().as_bytes(),
        );
    }
    let file = path.strip_prefix("/org/name/resolve/").and_then(|p| files.get(p.split_once('/')?.1));
    let Some((content, hash)) = file else { return reply("404 Not Found", String::new(), b"") };
    let (start, end) = from.unwrap_or((0, None));
    let end = end.map_or(content.len(), |e| (e + 1).min(content.len()));
    if end == content.len() && start == 0 {
        sent.fetch_add(1, Ordering::Relaxed);
    }
    let etag = hash.clone().unwrap_or_else(|| format!("{:x}", content.len()));
    let range = format!("Content-Range: bytes {start}-{}/{}", end.max(1) - 1, content.len());
    reply(
        "206 Partial Content",
        format!("ETag: \"{etag}\"\r\nx-repo-commit: {COMMIT}\r\n{range}\r\n"),
        &content[start..end],
    );
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// One weight, as a safetensors file.
fn weights() -> Vec<u8> {
    let header = br#"{"model.layers.0.q.weight":{"dtype":"F32","shape":[1,1],"data_offsets":[0,4]}}  "#;
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header);
    file.extend_from_slice(&1.5f32.to_le_bytes());
    file
}

fn repository() -> BTreeMap<&'static str, (Vec<u8>, Option<String>)> {
    let hash = sha256(&weights());
    [
        ("config.json", (br#"{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}"#.to_vec(), None)),
        ("model.safetensors", (weights(), Some(hash))),
        ("README.md", (b"not wanted".to_vec(), None)),
        ("../outside.json", (b"not wanted either".to_vec(), None)),
    ]
    .into()
}

fn lora_pack(home: &Path, endpoint: &str, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lora-pack"));
    command.args(args).current_dir(home).env("HF_HOME", home).env("HF_ENDPOINT", endpoint);
    for name in ["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_TOKEN", "HF_HUB_OFFLINE"] {
        command.env_remove(name);
    }
    command.output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn a_model_comes_into_the_cache_and_is_used_from_there() {
    let server = Server::start(repository());
    let home = tempfile::tempdir().unwrap();
    let fetched = lora_pack(home.path(), &server.address, &["fetch", "org/name", "--json"]);
    assert!(fetched.status.success(), "{}", text(&fetched.stderr));
    let said: serde_json::Value = serde_json::from_slice(&fetched.stdout).unwrap();
    assert_eq!((said["commit"].as_str(), said["model"].as_str()), (Some(COMMIT), Some("org/name")));
    let folder = home.path().join("hub/models--org--name/snapshots").join(COMMIT);
    assert_eq!(Path::new(said["folder"].as_str().unwrap()), folder);
    let mut names: Vec<_> = std::fs::read_dir(&folder).unwrap().flatten().map(|e| e.file_name()).collect();
    names.sort();
    assert_eq!(names, ["config.json", "model.safetensors"]);
    assert_eq!(server.sent.load(Ordering::Relaxed), 2);

    // Names work where paths do, without the server: the cache has it.
    for (i, base) in [&["org/name"][..], &["org/name", "--base-revision", COMMIT]].into_iter().enumerate() {
        let out = format!("out{i}");
        let mut args = vec!["export", "-o", &out, "--base"];
        args.extend(base);
        let exported = lora_pack(home.path(), "http://127.0.0.1:1", &args);
        assert!(exported.status.success(), "{}", text(&exported.stderr));
    }
    // Fetching again downloads nothing.
    assert!(lora_pack(home.path(), &server.address, &["fetch", "org/name"]).status.success());
    assert_eq!(server.sent.load(Ordering::Relaxed), 2);
}

#[test]
fn a_name_is_fetched_when_it_is_needed() {
    let server = Server::start(repository());
    let home = tempfile::tempdir().unwrap();
    let exported = lora_pack(home.path(), &server.address, &["export", "--base", "org/name", "-o", "out"]);
    assert!(exported.status.success(), "{}", text(&exported.stderr));
    assert!(home.path().join("out/model.safetensors").exists());
}

#[test]
fn what_cannot_be_fetched_is_said() {
    let server = Server::start(repository());
    let home = tempfile::tempdir().unwrap();
    let refused = |endpoint: &str, args: &[&str]| {
        let output = lora_pack(home.path(), endpoint, args);
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        text(&output.stderr)
    };
    let offline = refused("http://127.0.0.1:1", &["fetch", "org/name"]);
    assert!(offline.contains("org/name") && offline.contains("offline?"), "{offline}");
    let unknown = refused(&server.address, &["fetch", "org/other"]);
    assert!(unknown.contains("org/other") && unknown.contains("404"), "{unknown}");
    let revision = refused(&server.address, &["fetch", "org/name", "--revision", "v9"]);
    assert!(revision.contains("'v9'"), "{revision}");
    let name = refused(&server.address, &["fetch", "not a name"]);
    assert!(name.contains("org/name"), "{name}");
    let path = refused(&server.address, &["export", "--base", "./org/name", "-o", "out"]);
    assert!(path.contains("./org/name"), "{path}");
}

#[test]
fn damaged_downloads_are_thrown_away() {
    let mut files = repository();
    files.insert("model.safetensors", (weights(), Some(sha256(b"something else"))));
    let server = Server::start(files);
    let home = tempfile::tempdir().unwrap();
    let output = lora_pack(home.path(), &server.address, &["fetch", "org/name"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("damaged"), "{}", text(&output.stderr));
    let folder = home.path().join("hub/models--org--name/snapshots").join(COMMIT);
    assert!(!folder.join("model.safetensors").exists() && !folder.join("config.json").exists());
}

#[test]
fn a_repository_without_readable_weights_is_refused() {
    let mut files = repository();
    files.remove("model.safetensors");
    files.insert("pytorch_model.bin", (b"pickle".to_vec(), None));
    let server = Server::start(files);
    let home = tempfile::tempdir().unwrap();
    let output = lora_pack(home.path(), &server.address, &["fetch", "org/name"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("safetensors"), "{}", text(&output.stderr));
}
