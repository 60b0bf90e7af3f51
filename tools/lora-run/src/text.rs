//! Text to token ids, within what the model can take.

use anyhow::{Context, Result, bail};
use lora_runtime::Model;
use lora_runtime::tokenizer::{EncodeOptions, Encoding, Input, Token};

/// Token ids of a prompt; special tokens spelled out in it are recognised, as in templates.
pub fn prompt_ids(model: &Model<'_>, text: &str, add_special: bool) -> Result<Vec<u32>> {
    Ok(encode(model, text.into(), None, add_special)?.ids())
}

/// Encodes one or two texts (or lists of words).
pub fn encode(model: &Model<'_>, first: Input<'_>, second: Option<Input<'_>>, add_special: bool) -> Result<Encoding> {
    let options = EncodeOptions { add_special, ..EncodeOptions::default() };
    Ok(model.tokenizer()?.encode_input(first, second, options)?)
}

/// An input that fits the model: as it is, or cut where that was allowed.
pub fn fit(encoding: Encoding, limit: u32, truncate: bool) -> Result<Encoding> {
    let n = encoding.tokens.len();
    if n == 0 {
        bail!("the text is empty: it has no tokens");
    }
    if n <= limit as usize {
        return Ok(encoding);
    }
    if !truncate {
        bail!("the text has {n} tokens, there is room for {limit}: shorten it, or give --truncate");
    }
    let mut tokens = encoding.tokens;
    while tokens.len() > limit as usize {
        // From the end of the longer text; what the template put around the texts stays.
        let longer = [0, 1].into_iter().max_by_key(|s| (count(&tokens, *s), *s)).unwrap_or(0);
        let last = tokens.iter().rposition(|t| t.sequence == longer).context("the template alone is too long")?;
        tokens.remove(last);
    }
    Ok(Encoding { tokens })
}

fn count(tokens: &[Token], sequence: u8) -> usize {
    tokens.iter().filter(|t| t.sequence == sequence).count()
}

/// Token type ids for a model that has them, else none.
pub fn token_types(model: &Model<'_>, encoding: &Encoding) -> Vec<u32> {
    if model.file.info.token_types > 1 { encoding.type_ids() } else { Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(id: u32, sequence: u8) -> Token {
        Token { id, sequence, special: sequence == Token::NO_SEQUENCE, ..Token::default() }
    }

    #[test]
    fn cutting_keeps_the_template() {
        let none = Token::NO_SEQUENCE;
        let tokens: Vec<Token> = [(1, none), (10, 0), (11, 0), (12, 0), (2, none), (20, 1), (21, 1), (3, none)]
            .map(|(id, s)| token(id, s))
            .to_vec();
        let ids = |limit| fit(Encoding { tokens: tokens.clone() }, limit, true).map(|e| e.ids());
        assert_eq!(ids(8).unwrap(), [1, 10, 11, 12, 2, 20, 21, 3]);
        assert_eq!(ids(7).unwrap(), [1, 10, 11, 2, 20, 21, 3]);
        assert_eq!(ids(5).unwrap(), [1, 10, 2, 20, 3]);
        assert!(ids(2).is_err());
        assert!(fit(Encoding { tokens }, 7, false).unwrap_err().to_string().contains("8 tokens"));
        assert!(fit(Encoding::default(), 7, false).is_err());
    }
}
