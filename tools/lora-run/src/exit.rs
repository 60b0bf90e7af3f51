//! How the program ends: 0 success, 1 refused input or failed check, 2 wrong usage (which the argument parser ends).

use std::io;
use std::process::ExitCode;

use crate::output::note;

/// Prints an error and gives the exit code.
pub fn report(result: anyhow::Result<()>) -> ExitCode {
    let Err(error) = result else { return ExitCode::SUCCESS };
    // Whoever read the output went away: nobody is left to be told.
    let closed = |e: &io::Error| e.kind() == io::ErrorKind::BrokenPipe;
    if !error.chain().filter_map(|e| e.downcast_ref()).any(closed) {
        note(&format!("error: {}", one_line(&error)));
    }
    ExitCode::FAILURE
}

/// An error and its causes in one line.
pub fn one_line(error: &anyhow::Error) -> String {
    format!("{error:#}").split(['\n', '\r']).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn codes() {
        assert_eq!(report(Ok(())), ExitCode::SUCCESS);
        let closed: anyhow::Result<()> = Err(io::Error::from(io::ErrorKind::BrokenPipe).into());
        assert_eq!(report(closed.context("printing")), ExitCode::FAILURE);
        assert_eq!(report(Err(anyhow::anyhow!("refused"))), ExitCode::FAILURE);
    }

    #[test]
    fn errors_are_one_line() {
        let error = anyhow::anyhow!("inner\nsecond").context("outer");
        assert_eq!(one_line(&error), "outer: inner second");
    }
}
