//! Stop texts in a stream of pieces.

/// Holds back what may still become a stop text, and ends the stream where one is complete.
#[derive(Debug)]
pub struct Stopper {
    stops: Vec<String>,
    held: String,
}

impl Stopper {
    /// For these texts; empty ones never stop anything.
    pub fn new(stops: &[String]) -> Self {
        Self { stops: stops.iter().filter(|s| !s.is_empty()).cloned().collect(), held: String::new() }
    }

    /// Takes the next piece and appends to `out` what is certain to come before a stop text. True where one was
    /// found: it and what follows it is dropped.
    pub fn push(&mut self, piece: &str, out: &mut String) -> bool {
        if self.stops.is_empty() {
            out.push_str(piece);
            return false;
        }
        self.held.push_str(piece);
        // The one that is complete first, and of those that end together the one that begins first.
        let found = self.stops.iter().filter_map(|s| Some((self.held.find(s.as_str())?, s.len())));
        if let Some((at, _)) = found.min_by_key(|(at, len)| (at + len, *at)) {
            out.push_str(&self.held[..at]);
            self.held.clear();
            return true;
        }
        let keep = self.stops.iter().map(|s| overlap(&self.held, s)).max().unwrap_or(0);
        let certain = self.held.len() - keep;
        out.push_str(&self.held[..certain]);
        self.held.drain(..certain);
        false
    }

    /// The end of the stream: what was held back is text after all.
    pub fn finish(&mut self, out: &mut String) {
        out.push_str(&self.held);
        self.held.clear();
    }
}

/// The length of the longest end of `text` that is a beginning of `stop`, short of the whole.
fn overlap(text: &str, stop: &str) -> usize {
    let longest = text.len().min(stop.len() - 1);
    let is_end = |n: &usize| stop.is_char_boundary(*n) && text.as_bytes().ends_with(&stop.as_bytes()[..*n]);
    (1..=longest).rev().find(is_end).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds `text` in pieces of `n` characters; the text that came out and whether it stopped.
    fn run(text: &str, n: usize, stops: &[&str]) -> (String, bool) {
        let stops: Vec<String> = stops.iter().map(|s| (*s).to_owned()).collect();
        let mut stopper = Stopper::new(&stops);
        let mut out = String::new();
        let chars: Vec<char> = text.chars().collect();
        for piece in chars.chunks(n) {
            if stopper.push(&piece.iter().collect::<String>(), &mut out) {
                return (out, true);
            }
        }
        stopper.finish(&mut out);
        (out, false)
    }

    #[test]
    fn any_division_into_pieces_gives_the_same_text() {
        let cases = [
            ("hello\nUser: x", vec!["\nUser:"], "hello", true),
            ("aaab", vec!["aab"], "a", true),
            ("abcabd", vec!["abd"], "abc", true),
            ("ab", vec!["abc"], "ab", false),
            ("é🙂é", vec!["🙂é"], "é", true),
            ("é🙂", vec!["🙂é"], "é🙂", false),
            ("x</s>y", vec!["</s>", "y"], "x", true),
            ("one END two STOP", vec!["STOP", "END"], "one ", true),
            ("abcd", vec!["abcd", "bc"], "a", true),
            ("plain", vec![""], "plain", false),
            ("", vec!["x"], "", false),
        ];
        for (text, stops, expected, stopped) in cases {
            for n in 1..=text.chars().count().max(1) {
                assert_eq!(run(text, n, &stops), (expected.to_owned(), stopped), "{text:?} by {n}");
            }
        }
    }

    #[test]
    fn text_flows_as_soon_as_it_is_certain() {
        let mut stopper = Stopper::new(&["END".to_owned()]);
        let mut out = String::new();
        assert!(!stopper.push("some E", &mut out));
        assert_eq!(out, "some ");
        assert!(!stopper.push("NX", &mut out));
        assert_eq!(out, "some ENX");
        assert!(stopper.push("END", &mut out));
        assert_eq!(out, "some ENX");
    }
}
