//! Trained models of up to 135 million parameters. Slow, so ignored unless asked for: `tests/run-real.sh`.
//!
//! | variable | meaning |
//! |---|---|
//! | `LORA_PACK_SHARED` | folder with `assets/`: adapters, references, test sets |
//! | `LORA_PACK_BASES` | folder with the bases that are not among the assets |
//! | `REAL_ASSETS` | parts of names, comma separated |
//! | `REAL_QUANTS` | formats, comma separated: `f32,q8,q4,q4 calib` |
//! | `REAL_LINES` | lines of each test set, 100 |

use conformance::real::{ASSETS, Places, check};
use conformance::{data, ledger, skip};

#[test]
#[ignore = "minutes long; run it with tests/run-real.sh"]
fn trained_models() {
    let Some(assets) = data::shared().map(|s| s.join("assets")).filter(|p| p.is_dir()) else {
        return skip("trained models", "no assets; set LORA_PACK_SHARED");
    };
    let var = |name: &str, default: &str| std::env::var(name).unwrap_or_else(|_| default.to_owned());
    let lines: usize = var("REAL_LINES", "100").parse().expect("REAL_LINES is a number");
    let (wanted, quants) = (var("REAL_ASSETS", ""), var("REAL_QUANTS", "f32,q8,q4,q4 calib"));
    let places = Places { assets, bases: data::bases() };
    // One after the other: the larger models take all cores and a good part of the memory themselves.
    let mut results = Vec::new();
    for asset in ASSETS.iter().filter(|a| ledger::selected(&wanted, a.name)) {
        let Some(base) = places.base(asset) else {
            skip(asset.name, &format!("no folder {} in LORA_PACK_BASES", asset.base));
            continue;
        };
        let reports = quants.split(',').map(|quant| {
            let report = check(&places, asset, &base, quant, lines).expect("a temporary folder");
            (quant.to_owned(), report)
        });
        results.push((format!("real/{}", asset.name), reports.collect()));
    }
    ledger::enforce("trained models", &results);
}
