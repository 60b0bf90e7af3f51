//! What a model's authors force or forbid, whatever the logits say; with the meaning that `transformers` gives
//! the options of a generation config.

/// Rules for the next token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rules<'m> {
    /// The first token of an answer (`forced_bos_token_id`).
    pub first: Option<u32>,
    /// Tokens that never come (`suppress_tokens`, `bad_words_ids` of one token).
    pub suppressed: &'m [u32],
    /// No run of so many tokens comes twice, the prompt included (`no_repeat_ngram_size`); 0 is off.
    pub no_repeat: u32,
    /// None of `eos` comes before so many tokens (`min_new_tokens`).
    pub min_new: u32,
    /// The tokens that end an answer.
    pub eos: &'m [u32],
}

impl Rules<'_> {
    /// Whether [`Self::apply`] never changes anything.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.first.is_none() && self.suppressed.is_empty() && self.no_repeat == 0 && self.min_new == 0
    }

    /// Sets the logits of what must not come to −∞. `past` is the prompt (of an encoder–decoder: the decoder's) and the
    /// answer so far, of which the last `made` tokens are the answer. Ids beyond the row are passed over.
    pub fn apply(&self, logits: &mut [f32], past: &[u32], made: usize) {
        let mut forbid = |id: u32| {
            if let Some(x) = logits.get_mut(id as usize) {
                *x = f32::NEG_INFINITY;
            }
        };
        self.suppressed.iter().for_each(|id| forbid(*id));
        if made < self.min_new as usize {
            self.eos.iter().for_each(|id| forbid(*id));
        }
        let n = self.no_repeat as usize;
        if n > 0 && past.len() >= n {
            let last = &past[past.len() + 1 - n..];
            // A run that began like the last n − 1 tokens must not end as it did.
            past.windows(n).filter(|run| run[..n - 1] == *last).for_each(|run| forbid(run[n - 1]));
        }
        if let Some(first) = self.first.filter(|id| made == 0 && (*id as usize) < logits.len()) {
            logits.fill(f32::NEG_INFINITY);
            logits[first as usize] = 0.0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Which of eight tokens may come.
    fn allowed(rules: Rules<'_>, past: &[u32], made: usize) -> [bool; 8] {
        let mut logits = [1.0; 8];
        rules.apply(&mut logits, past, made);
        logits.map(|x| x > f32::NEG_INFINITY)
    }

    fn all_but(forbidden: &[usize]) -> [bool; 8] {
        core::array::from_fn(|i| !forbidden.contains(&i))
    }

    #[test]
    fn the_first_token_is_forced_once() {
        let rules = Rules { first: Some(3), suppressed: &[3], ..Rules::default() };
        assert!(!rules.is_empty());
        assert_eq!(allowed(rules, &[0], 0), all_but(&[0, 1, 2, 4, 5, 6, 7]));
        assert_eq!(allowed(rules, &[0, 3], 1), all_but(&[3]));
        assert_eq!(allowed(Rules { first: Some(8), ..Rules::default() }, &[0], 0), all_but(&[]));
    }

    #[test]
    fn tokens_are_suppressed_and_ends_held_back() {
        let rules = Rules { suppressed: &[1, 99], min_new: 2, eos: &[7, 6], ..Rules::default() };
        assert_eq!(allowed(rules, &[], 1), all_but(&[1, 6, 7]));
        assert_eq!(allowed(rules, &[], 2), all_but(&[1]));
    }

    #[test]
    fn no_run_comes_twice() {
        let rules = |no_repeat| Rules { no_repeat, ..Rules::default() };
        assert_eq!(allowed(rules(3), &[1, 2, 3, 1, 2], 0), all_but(&[3]));
        assert_eq!(allowed(rules(3), &[1, 2, 3, 2, 2], 0), all_but(&[]));
        assert_eq!(allowed(rules(2), &[5, 1, 5, 2, 5], 0), all_but(&[1, 2]));
        // A single token twice; a run that is longer than the past.
        assert_eq!(allowed(rules(1), &[4, 4, 2], 0), all_but(&[2, 4]));
        assert_eq!(allowed(rules(4), &[1, 1, 1], 0), all_but(&[]));
        assert_eq!(allowed(rules(2), &[], 0), all_but(&[]));
        assert!(Rules::default().is_empty());
    }
}
