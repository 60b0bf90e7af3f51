//! `docs/peft.md` is made of the same tables that the merge follows. Run with `BLESS=1` to rewrite it.

use std::fmt::Write;
use std::path::Path;

use lora_pack::merge::Combine;
use lora_pack::merge::config::fields::FIELDS;
use lora_pack::merge::config::{Action, Field};
use lora_pack::merge::method::{METHODS, REFUSED};

fn table_of_fields(out: &mut String, fields: &[Field]) {
    out.push_str("| field | default | what is done | |\n|---|---|---|---|\n");
    for f in fields {
        let _ = writeln!(
            out,
            "| `{}` | `{}` | {} | {} |",
            f.name,
            f.default,
            f.action.word(),
            f.meaning.replace('|', "\\|")
        );
    }
}

fn generated() -> String {
    let mut out = String::from("## Every field of `LoraConfig`\n\n");
    table_of_fields(&mut out, FIELDS);
    let count = |a: Action| FIELDS.iter().filter(|f| f.action == a).count();
    let _ = writeln!(
        out,
        "\n{} applied, {} checked, {} irrelevant for inference, {} refused. A field that is not in this table is an \
         error unless it looks unset (`null`, `false`, `0`, empty); `--force` ignores it with a warning.",
        count(Action::Applied),
        count(Action::Checked),
        count(Action::Irrelevant),
        count(Action::Refused)
    );
    out.push_str("\n## Methods that are merged\n\n| `peft_type` | merged weight |\n|---|---|\n");
    for m in METHODS {
        let _ = writeln!(out, "| `{}` | {} |", m.name, m.formula);
    }
    out.push_str("\nFields that only these methods have:\n");
    for m in METHODS.iter().filter(|m| !m.fields.is_empty()) {
        let _ = writeln!(out, "\n### {}\n", m.name);
        table_of_fields(&mut out, m.fields);
    }
    out.push_str("\n## Methods that are refused\n\n| `peft_type` | why |\n|---|---|\n");
    for (name, why) in REFUSED {
        let _ = writeln!(out, "| `{name}` | {why} |");
    }
    let names: Vec<String> = Combine::ALL.iter().map(|(_, n)| format!("`{n}`")).collect();
    let _ = writeln!(out, "\n## Ways to combine adapters\n\n{}.", names.join(", "));
    out
}

const BEGIN: &str = "<!-- The rest of this page is written by a test. -->\n";

#[test]
fn the_page_says_what_the_code_does() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/peft.md");
    let page = std::fs::read_to_string(&path).unwrap();
    let (head, rest) = page.split_once(BEGIN).expect("the page has its marker");
    let want = format!("\n{}", generated());
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&path, format!("{head}{BEGIN}{want}")).unwrap();
    } else {
        assert!(rest == want, "docs/peft.md is out of date: run the tests with BLESS=1 and look at the difference");
    }
}
