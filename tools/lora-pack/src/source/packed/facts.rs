//! What a pack records about the checkpoint that it was made of: enough to speak of its tensors by their names again.
//!
//! Names repeat from layer to layer, so they are kept by pattern: `{"model.layers.*.mlp.up_proj.weight": [[30], [1536, 576]]}`
//! stands for 30 tensors of one shape, with every number from 0 on in place of the star.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

/// Metadata key of the checkpoint's config.
pub const CONFIG: &str = "checkpoint.config";
/// Metadata key of its generation config.
pub const GENERATION: &str = "checkpoint.generation";
/// Metadata key of its tensors.
pub const TENSORS: &str = "checkpoint.tensors";

/// Most tensors that a record may stand for, a bound on memory.
const MAX_TENSORS: usize = 1 << 20;

/// A tensor of a pattern: the numbers in its name, its name, its shape.
type Member<'a> = (Vec<usize>, &'a str, &'a [usize]);

/// Names and shapes as one JSON object.
pub fn encode<'a>(tensors: impl Iterator<Item = (&'a str, &'a [usize])>) -> Value {
    let mut groups: BTreeMap<String, Vec<Member<'_>>> = BTreeMap::new();
    for (name, shape) in tensors {
        let (pattern, numbers) = split(name);
        groups.entry(pattern).or_default().push((numbers, name, shape));
    }
    let mut out = Map::new();
    for (pattern, mut members) in groups {
        members.sort_unstable();
        let shape = members[0].2;
        let counts: Vec<usize> = members[members.len() - 1].0.iter().map(|n| n + 1).collect();
        let all: Option<usize> = counts.iter().try_fold(1_usize, |n, c| n.checked_mul(*c));
        if all == Some(members.len()) && members.iter().all(|m| m.2 == shape) {
            out.insert(pattern, json!([counts, shape]));
        } else {
            out.extend(members.into_iter().map(|(_, name, shape)| (name.to_owned(), json!([[], shape]))));
        }
    }
    Value::Object(out)
}

/// The names and shapes behind [`encode`]'s object; `None` if it is not one.
pub fn decode(facts: &Value) -> Option<Vec<(String, Vec<usize>)>> {
    let list = |v: &Value| v.as_array()?.iter().map(|n| usize::try_from(n.as_u64()?).ok()).collect::<Option<Vec<_>>>();
    let mut out = Vec::new();
    for (pattern, about) in facts.as_object()? {
        let [counts, shape] = about.as_array()?.as_slice() else { return None };
        let (counts, shape) = (list(counts)?, list(shape)?);
        if counts.is_empty() {
            out.push((pattern.clone(), shape));
            continue;
        }
        let pieces: Vec<&str> = pattern.split('*').collect();
        let all = counts.iter().try_fold(1_usize, |n, c| n.checked_mul(*c)).filter(|n| *n <= MAX_TENSORS)?;
        if pieces.len() != counts.len() + 1 || out.len() + all > MAX_TENSORS {
            return None;
        }
        for i in 0..all {
            let (mut name, mut rest) = (String::new(), i);
            for (d, piece) in pieces.iter().enumerate() {
                name.push_str(piece);
                if let Some(count) = counts.get(d) {
                    let below: usize = counts[d + 1..].iter().product();
                    name.push_str(&(rest / below % count).to_string());
                    rest %= below;
                }
            }
            out.push((name, shape.clone()));
        }
    }
    Some(out)
}

/// A name with stars in place of its numbers, and the numbers. A name that has a star of its own stays as it is.
fn split(name: &str) -> (String, Vec<usize>) {
    let mut numbers = Vec::new();
    let part = |p: &str| match p.parse::<usize>() {
        Ok(n) if n.to_string() == p => {
            numbers.push(n);
            "*".to_owned()
        }
        _ => p.to_owned(),
    };
    let pattern: Vec<String> = name.split('.').map(part).collect();
    if name.contains('*') { (name.to_owned(), Vec::new()) } else { (pattern.join("."), numbers) }
}

#[cfg(test)]
mod tests {
    use super::{decode, encode};

    #[test]
    fn names_come_back_from_patterns() {
        let mut names: Vec<(String, Vec<usize>)> = vec![
            ("embed.weight".into(), vec![100, 8]),
            // A gap, and a layer of another shape: these are spelled out.
            ("odd.0.weight".into(), vec![4]),
            ("odd.2.weight".into(), vec![4]),
            ("wide.0.weight".into(), vec![4]),
            ("wide.1.weight".into(), vec![5]),
            ("a*b.3.weight".into(), vec![1]),
            ("old.00.weight".into(), vec![1]),
            ("scalar".into(), vec![]),
        ];
        for layer in 0..12 {
            names.push((format!("layers.{layer}.norm.weight"), vec![8]));
            names.extend((0..3).map(|e| (format!("layers.{layer}.experts.{e}.w1"), vec![16, 8])));
        }
        names.sort();
        let facts = encode(names.iter().map(|(n, s)| (n.as_str(), s.as_slice())));
        assert_eq!(facts["layers.*.experts.*.w1"], serde_json::json!([[12, 3], [16, 8]]));
        let mut back = decode(&facts).unwrap();
        back.sort();
        assert_eq!(back, names);
        let nonsense = [r#"[]"#, r#"{"a":[[1]]}"#, r#"{"a.*":[[1,2],[3]]}"#, r#"{"a.*":[[99999999999],[3]]}"#];
        for text in nonsense {
            assert_eq!(decode(&serde_json::from_str(text).unwrap()), None, "{text}");
        }
    }
}
