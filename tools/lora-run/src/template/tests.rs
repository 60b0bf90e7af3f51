use std::path::PathBuf;

use serde_json::json;

use super::*;

fn render(source: &str, messages: &Json) -> Result<String> {
    let special = vec![("bos_token".into(), "<s>".into()), ("eos_token".into(), "</s>".into())];
    ChatTemplate::new(source, special)?.render(messages, None, true)
}

fn text(source: &str) -> String {
    render(source, &json!([{ "role": "user", "content": " Hi " }])).unwrap()
}

/// Folders of recorded cases: the committed ones, and the complete kit where it is.
fn fixture_folders() -> Vec<PathBuf> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..");
    let shared = std::env::var_os("LORA_PACK_SHARED").map_or_else(|| root.join("../shared"), PathBuf::from);
    [root.join("tests/data/fixtures"), shared.join("fixtures")].into_iter().filter(|p| p.is_dir()).collect()
}

/// Every recorded conversation of every case with a template renders to the recorded text.
#[test]
fn recorded_conversations() {
    let mut count = 0;
    for case in fixture_folders().iter().flat_map(|f| std::fs::read_dir(f).unwrap()) {
        let case = case.unwrap().path();
        let read = |name: &str| std::fs::read_to_string(case.join(name)).ok();
        let Some(record) = read("case.json") else { continue };
        let record: Json = serde_json::from_str(&record).unwrap();
        let config: Json = read("base/tokenizer_config.json").map_or(Json::Null, |c| serde_json::from_str(&c).unwrap());
        let source = read("base/chat_template.jinja").or_else(|| config["chat_template"].as_str().map(str::to_owned));
        let (Some(source), Some(chats)) = (source, record["tokenizer"]["chat"].as_array()) else { continue };
        let special: Vec<(String, String)> = ["bos_token", "eos_token", "pad_token", "unk_token"]
            .into_iter()
            .filter_map(|name| Some((name.to_owned(), config[name].as_str()?.to_owned())))
            .collect();
        let template = ChatTemplate::new(&source, special).unwrap();
        for chat in chats {
            let prompt = chat["add_generation_prompt"].as_bool().unwrap();
            let rendered = template.render(&chat["messages"], None, prompt).unwrap();
            assert_eq!(rendered, chat["rendered"].as_str().unwrap(), "{}", case.display());
            count += 1;
        }
    }
    if count == 0 {
        eprintln!("SKIP: no recorded conversations found");
    } else {
        eprintln!("{count} recorded conversations");
    }
}

/// What transformers 5.23 renders snippets to, recorded with its own environment: every construct that published templates
/// use, over a conversation with tool calls, lists of parts and awkward characters.
#[test]
fn snippets_render_as_in_transformers() {
    let record: Json = serde_json::from_str(include_str!("renders.json")).unwrap();
    let special = vec![("bos_token".into(), "<s>".into()), ("eos_token".into(), "</s>".into())];
    let mut differ = Vec::new();
    for case in record["renders"].as_array().unwrap() {
        let (source, expected) = (case["template"].as_str().unwrap(), case["rendered"].as_str().unwrap());
        let rendered = ChatTemplate::new(source, special.clone())
            .and_then(|t| t.render(&record["messages"], Some(&record["tools"]), true))
            .unwrap_or_else(|e| format!("error: {e}"));
        // Jinja's tuples are lists here, which shows when one is printed.
        let expected = case["here"].as_str().unwrap_or(expected);
        if rendered != expected {
            differ.push(format!("{source}\n    {rendered:?}\n    {expected:?}"));
        }
    }
    assert!(differ.is_empty(), "{} differ:\n{}", differ.len(), differ.join("\n"));
}

#[test]
fn python_methods_and_printing() {
    assert_eq!(text("{{ ' a  b c '.rsplit() }} {{ ' a  b c '.rsplit(none, 1) }}"), "['a', 'b', 'c'] [' a  b', 'c']");
    assert_eq!(text("{{ 'a.b.c'.rsplit('.', maxsplit=1) }} {{ 'a'.rsplit('.') }}"), "['a.b', 'c'] ['a']");
    assert_eq!(text("{{ messages[0]['content'].strip() + '|' }}"), "Hi|");
    assert_eq!(text("{{ 'a,b'.split(',')[-1] }}"), "b");
    assert_eq!(text("{% for k, v in messages[0].items() %}{{ k }}={{ v }};{% endfor %}"), "role=user;content= Hi ;");
    assert_eq!(text("{{ messages[0].get('none', 7) }} {{ 'x'.startswith('x') }} {{ none }}"), "7 True None");
    assert_eq!(text("{{ [1, 'a', 2.0, false] }} {{ {'k': \"it's\"} }}"), "[1, 'a', 2.0, False] {'k': \"it's\"}");
    assert_eq!(text("{{ missing }}{{ messages[0].missing }}."), ".");
    assert_eq!(text("{{ 1e16 }} {{ 0.00001 }} {{ 0.0001 }} {{ 1.5e300 }}"), "1e+16 1e-05 0.0001 1.5e+300");
}

#[test]
fn json_as_python_writes_it() {
    let messages = json!([{ "role": "user", "content": "é<b>&'\n", "z": [1, 2.0, null, true], "a": {} }]);
    let expected = "{\"role\": \"user\", \"content\": \"é<b>&'\\n\", \"z\": [1, 2.0, null, true], \"a\": {}}";
    assert_eq!(render("{{ messages[0] | tojson }}", &messages).unwrap(), expected);
    assert_eq!(render("{{ 'é😀' | tojson(ensure_ascii=true) }}", &messages).unwrap(), "\"\\u00e9\\ud83d\\ude00\"");
    let indented = render("{{ messages[0].z | tojson(indent=2) }}", &messages).unwrap();
    assert_eq!(indented, "[\n  1,\n  2.0,\n  null,\n  true\n]");
    let sorted = render("{{ messages[0] | tojson(sort_keys=true, separators=(',', ':')) }}", &messages).unwrap();
    assert!(sorted.starts_with("{\"a\":{},\"content\":"), "{sorted}");
}

#[test]
fn jinja_as_transformers_sets_it() {
    // Blocks swallow the line end behind them and the blanks before them; one trailing line end goes.
    assert_eq!(text("  {% if true %}\nx\n  {% endif %}\ny\n"), "x\ny");
    assert_eq!(text("{% for i in range(9) %}{% if i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}"), "012");
    assert_eq!(
        text("{% set ns = namespace(n=0) %}{% for i in [1, 2] %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}"),
        "3"
    );
    assert_eq!(text("{{- bos_token }}{%- generation -%} a {%- endgeneration %}{{ eos_token }}"), "<s>a</s>");
    assert_eq!(text("{% if tools is not none %}t{% endif %}{{ '<&>' }}"), "<&>");
}

#[test]
fn refusals_are_told_in_the_templates_words() {
    let error = render("{{ raise_exception('roles must alternate') }}", &json!([])).unwrap_err().to_string();
    assert!(error.contains("roles must alternate"), "{error}");
    assert!(ChatTemplate::new("{% if %}", Vec::new()).is_err());
}

#[test]
fn templates_cannot_run_for_ever() {
    let nested = "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}{% endfor %}{% endfor %}{% endfor %}";
    assert!(render(nested, &json!([])).is_err());
}

#[test]
fn dates() {
    let at = |s: u64| python::strftime("%d %b %Y|%-d %B %y|%A %a|%H:%M:%S %I %p|%j|%%|%q", s);
    assert_eq!(at(0), "01 Jan 1970|1 January 70|Thursday Thu|00:00:00 12 AM|001|%|%q");
    assert_eq!(at(1_709_251_199), "29 Feb 2024|29 February 24|Thursday Thu|23:59:59 11 PM|060|%|%q");
    assert_eq!(python::strftime("%F %T", 4_102_444_800), "2100-01-01 00:00:00");
}
