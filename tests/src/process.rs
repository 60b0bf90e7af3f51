//! Running one program with limits, and what it used.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use wait4::Wait4;

/// A call, its folder and its limits.
#[derive(Clone, Debug)]
pub struct Call {
    program: PathBuf,
    args: Vec<OsString>,
    folder: PathBuf,
    wall: Duration,
    address_space: u64,
}

/// What came of a [`Call`].
#[derive(Debug)]
pub struct Finished {
    /// The call as one would type it.
    pub line: String,
    /// Exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    /// It was killed because it ran past its time limit.
    pub timed_out: bool,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// Time by the clock.
    pub wall: Duration,
    /// CPU time, user and system.
    pub cpu: Duration,
    /// Largest resident memory in bytes. An upper bound: the kernel counts the moment between fork and exec too.
    pub peak: u64,
}

impl Call {
    /// A call of `program` in `folder`: one minute, 8 GiB of address space.
    #[must_use]
    pub fn new(program: &Path, folder: &Path) -> Self {
        Self {
            program: program.into(),
            args: Vec::new(),
            folder: folder.into(),
            wall: Duration::from_secs(60),
            address_space: 8 << 30,
        }
    }

    /// Appends an argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().into());
        self
    }

    /// Appends several arguments.
    #[must_use]
    pub fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.args.extend(args.into_iter().map(|a| a.as_ref().into()));
        self
    }

    /// Sets the time limit.
    #[must_use]
    pub fn wall(mut self, limit: Duration) -> Self {
        self.wall = limit;
        self
    }

    /// The same call as an argument of another program, one that traces it for instance.
    #[must_use]
    pub fn under(mut self, program: &str, args: &[&str]) -> Self {
        let inner = std::mem::replace(&mut self.program, program.into());
        let before = args.iter().map(OsString::from).chain([inner.into_os_string()]);
        self.args = before.chain(std::mem::take(&mut self.args)).collect();
        self
    }

    /// The call as one would type it.
    #[must_use]
    pub fn line(&self) -> String {
        let mut line = self.program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        for arg in &self.args {
            line.push(' ');
            let text = arg.to_string_lossy();
            if text.is_empty() || text.contains(|c: char| c.is_whitespace() || "'\"\\$&|<>;*".contains(c)) {
                line.push_str(&format!("{text:?}"));
            } else {
                line.push_str(&text);
            }
        }
        line
    }

    /// Runs it. Output goes through files, so no pipe can fill up; `TMPDIR` is the call's folder, so that
    /// anything left behind is found there.
    ///
    /// # Errors
    /// If the program cannot be started or its output cannot be read.
    pub fn run(&self) -> Result<Finished> {
        let (mut out, mut err) = (tempfile::tempfile()?, tempfile::tempfile()?);
        // `ulimit` is the one way to set a limit for a child without unsafe code; it guards the machine, not the
        // program: the bar for memory is `peak`.
        let mut command = Command::new("/bin/sh");
        command.arg("-c").arg(format!("ulimit -v {} && exec \"$0\" \"$@\"", self.address_space >> 10));
        command.arg(&self.program).args(&self.args).current_dir(&self.folder).env("TMPDIR", &self.folder);
        command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(err.try_clone()?);
        let start = Instant::now();
        let mut child = command.spawn().with_context(|| format!("starting {}", self.program.display()))?;
        let mut timed_out = false;
        let used = loop {
            if let Some(used) = child.try_wait4()? {
                break used;
            }
            if start.elapsed() > self.wall {
                timed_out = true;
                child.kill()?;
                break child.wait4()?;
            }
            std::thread::sleep(Duration::from_millis(if start.elapsed().as_millis() < 100 { 1 } else { 10 }));
        };
        Ok(Finished {
            line: self.line(),
            code: used.status.code(),
            timed_out,
            stdout: contents(&mut out)?,
            stderr: contents(&mut err)?,
            wall: start.elapsed(),
            cpu: used.rusage.utime + used.rusage.stime,
            peak: used.rusage.maxrss,
        })
    }
}

impl Finished {
    /// The line of standard error that says what was wrong: the first that starts with `error`, else the last
    /// that is not blank.
    #[must_use]
    pub fn message(&self) -> &str {
        let mut lines = self.stderr.lines().map(str::trim).filter(|l| !l.is_empty());
        lines.clone().find(|l| l.to_lowercase().starts_with("error")).or_else(|| lines.next_back()).unwrap_or("")
    }

    /// How it ended, in words.
    #[must_use]
    pub fn ending(&self) -> String {
        match (self.timed_out, self.code) {
            (true, _) => format!("killed after {:.1} s", self.wall.as_secs_f64()),
            (_, Some(code)) => format!("exit code {code}"),
            (_, None) => "ended by a signal".into(),
        }
    }
}

fn contents(file: &mut File) -> Result<String> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0))?;
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
