//! What is printed: data on standard output, talk on standard error. On a terminal, text that a model or a file wrote
//! is stripped of control characters, so that it cannot move the cursor, set colours or answer for the user.

use std::io::{self, IsTerminal, StdoutLock, Write};

use anyhow::Result;
use serde_json::Value;

/// Standard output.
pub struct Out {
    to: StdoutLock<'static>,
    terminal: bool,
}

impl Out {
    /// Locks standard output.
    pub fn new() -> Self {
        let to = io::stdout().lock();
        let terminal = to.is_terminal();
        Self { to, terminal }
    }

    /// Prints text as it comes, visible at once.
    pub fn text(&mut self, text: &str) -> Result<()> {
        if self.terminal {
            self.to.write_all(printable(text).as_bytes())?;
        } else {
            self.to.write_all(text.as_bytes())?;
        }
        Ok(self.to.flush()?)
    }

    /// Prints a line.
    pub fn line(&mut self, text: &str) -> Result<()> {
        self.text(text)?;
        self.to.write_all(b"\n")?;
        Ok(self.to.flush()?)
    }

    /// Prints a JSON value on a line of its own; escapes keep it harmless anywhere.
    pub fn json(&mut self, value: &Value) -> Result<()> {
        serde_json::to_writer(&mut self.to, value).map_err(io::Error::from)?;
        self.to.write_all(b"\n")?;
        Ok(self.to.flush()?)
    }
}

/// Prints a line on standard error; where nobody listens, nothing happens.
pub fn note(text: &str) {
    let mut to = io::stderr().lock();
    let terminal = to.is_terminal();
    let text = if terminal { printable(text) } else { text.to_owned() };
    let _ = writeln!(to, "{text}");
}

/// Whether a person watches both sides.
pub fn interactive() -> bool {
    io::stdin().is_terminal() && io::stdout().is_terminal()
}

/// `text` without control characters except line ends and tabs.
pub fn printable(text: &str) -> String {
    text.chars().filter(|c| matches!(c, '\n' | '\t') || !c.is_control()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terminals_are_safe_from_models() {
        let hostile = "a\x1b[31mred\x07\u{9b}2J\x7f\r\n\tb é 🙂";
        assert_eq!(printable(hostile), "a[31mred2J\n\tb é 🙂");
    }
}
