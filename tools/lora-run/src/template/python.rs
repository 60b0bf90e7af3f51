//! Values as Python prints them: `str()`, `repr()`, `json.dumps()` and `strftime()`.

use std::fmt::{self, Write};

use minijinja::value::{Value, ValueKind};
use serde_json::Value as Json;

/// Nesting at which printing gives up; templates and their data come from files.
const MAX_DEPTH: usize = 64;

/// A JSON value as a template value; the order of keys is kept.
pub fn value(json: &Json) -> Value {
    match json {
        Json::Null => Value::from(()),
        Json::Bool(b) => Value::from(*b),
        Json::Number(n) => match (n.as_i64(), n.as_u64()) {
            (Some(i), _) => Value::from(i),
            (_, Some(u)) => Value::from(u),
            _ => Value::from(n.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(s) => Value::from(s.as_str()),
        Json::Array(list) => Value::from(list.iter().map(value).collect::<Vec<_>>()),
        Json::Object(map) => Value::from_pairs(map.iter().map(|(k, v)| (k.clone(), value(v)))),
    }
}

/// A text with the characters that mean something in HTML replaced, as MarkupSafe does it; text marked as safe stays.
pub fn escape(value: Value) -> Value {
    if value.is_safe() {
        return value;
    }
    let mut plain = String::new();
    // Writing to a string cannot fail.
    let _ = write_str(&mut plain, &value);
    let mut out = String::with_capacity(plain.len());
    for c in plain.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&#34;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    Value::from_safe_string(out)
}

/// `str.rsplit`: at most so many splits, counted from the end; without a separator at runs of white space.
pub fn rsplit(text: &str, separator: Option<&str>, most: usize) -> Vec<String> {
    let mut parts: Vec<String> = match separator {
        Some(separator) => text.rsplitn(most + 1, separator).map(str::to_owned).collect(),
        None => {
            let (mut rest, mut parts) = (text.trim_end(), Vec::new());
            while let Some(at) = rest.rfind(char::is_whitespace).filter(|_| parts.len() < most) {
                let after = at + rest[at..].chars().next().map_or(1, char::len_utf8);
                parts.push(rest[after..].to_owned());
                rest = rest[..at].trim_end();
            }
            parts.extend((!rest.is_empty()).then(|| rest.to_owned()));
            parts
        }
    };
    parts.reverse();
    parts
}

/// `str(value)`; undefined is empty.
pub fn write_str(out: &mut impl Write, value: &Value) -> fmt::Result {
    match value.as_str() {
        Some(s) => out.write_str(s),
        None => write_repr(out, value, 0),
    }
}

fn write_repr(out: &mut impl Write, value: &Value, depth: usize) -> fmt::Result {
    if depth > MAX_DEPTH {
        return Err(fmt::Error);
    }
    match value.kind() {
        ValueKind::Undefined => Ok(()),
        ValueKind::None => out.write_str("None"),
        ValueKind::Bool => out.write_str(if value.is_true() { "True" } else { "False" }),
        ValueKind::Number => write_number(out, value),
        ValueKind::String => write_quoted(out, value.as_str().unwrap_or("")),
        ValueKind::Seq => {
            out.write_char('[')?;
            for (i, item) in items(value).enumerate() {
                out.write_str(if i > 0 { ", " } else { "" })?;
                write_repr(out, &item, depth + 1)?;
            }
            out.write_char(']')
        }
        ValueKind::Map => {
            out.write_char('{')?;
            for (i, key) in items(value).enumerate() {
                out.write_str(if i > 0 { ", " } else { "" })?;
                write_repr(out, &key, depth + 1)?;
                out.write_str(": ")?;
                write_repr(out, &value.get_item(&key).unwrap_or_default(), depth + 1)?;
            }
            out.write_char('}')
        }
        _ => write!(out, "{value}"),
    }
}

fn items(value: &Value) -> impl Iterator<Item = Value> {
    value.try_iter().ok().into_iter().flatten()
}

/// A text in quotes as Python shows it in lists.
fn write_quoted(out: &mut impl Write, s: &str) -> fmt::Result {
    let quote = if s.contains('\'') && !s.contains('"') { '"' } else { '\'' };
    out.write_char(quote)?;
    for c in s.chars() {
        match c {
            '\\' => out.write_str("\\\\")?,
            '\n' => out.write_str("\\n")?,
            '\r' => out.write_str("\\r")?,
            '\t' => out.write_str("\\t")?,
            c if c == quote => write!(out, "\\{c}")?,
            c if c.is_control() => write!(out, "\\x{:02x}", u32::from(c))?,
            c => out.write_char(c)?,
        }
    }
    out.write_char(quote)
}

fn write_number(out: &mut impl Write, value: &Value) -> fmt::Result {
    match f64::try_from(value.clone()) {
        Ok(x) if !value.is_integer() => write_float(out, x),
        _ => write!(out, "{value}"),
    }
}

/// `repr(float)`: the shortest digits that read back, with an exponent outside of 10⁻⁴ … 10¹⁶.
fn write_float(out: &mut impl Write, x: f64) -> fmt::Result {
    if x.is_nan() {
        return out.write_str("nan");
    }
    if x.is_infinite() {
        return out.write_str(if x > 0.0 { "inf" } else { "-inf" });
    }
    let scientific = format!("{x:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) {
        return write!(out, "{x:?}");
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    write!(out, "{digits}e{sign}{:02}", exponent.unsigned_abs())
}

/// Options of `json.dumps`.
#[derive(Clone, Debug, Default)]
pub struct JsonStyle {
    /// Blanks per level; lines are broken if there are any given.
    pub indent: Option<usize>,
    /// `\u` escapes for everything beyond ASCII.
    pub ensure_ascii: bool,
    /// Keys in order of their text.
    pub sort_keys: bool,
    /// Between items, and after a key.
    pub separators: Option<(String, String)>,
}

impl JsonStyle {
    fn item(&self) -> &str {
        match (&self.separators, self.indent) {
            (Some((item, _)), _) => item,
            (None, Some(_)) => ",",
            (None, None) => ", ",
        }
    }
    fn key(&self) -> &str {
        self.separators.as_ref().map_or(": ", |(_, key)| key)
    }
    fn line(&self, out: &mut impl Write, depth: usize) -> fmt::Result {
        match self.indent {
            Some(blanks) => write!(out, "\n{:1$}", "", (blanks * depth).min(1024)),
            None => Ok(()),
        }
    }
}

/// `json.dumps(value)`.
pub fn write_json(out: &mut impl Write, value: &Value, style: &JsonStyle, depth: usize) -> fmt::Result {
    if depth > MAX_DEPTH {
        return Err(fmt::Error);
    }
    match value.kind() {
        ValueKind::Undefined | ValueKind::None => out.write_str("null"),
        ValueKind::Bool => out.write_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number => write_number(out, value),
        ValueKind::Map => {
            let mut members: Vec<_> =
                items(value).map(|k| (Some(k.clone()), value.get_item(&k).unwrap_or_default())).collect();
            if style.sort_keys {
                members.sort_by_key(|(k, _)| k.as_ref().map(Value::to_string));
            }
            write_members(out, ['{', '}'], &members, style, depth)
        }
        ValueKind::Seq | ValueKind::Iterable => {
            let members: Vec<_> = items(value).map(|v| (None, v)).collect();
            write_members(out, ['[', ']'], &members, style, depth)
        }
        _ => write_json_text(out, &value.to_string(), style.ensure_ascii),
    }
}

/// A list, or an object where the members have keys.
fn write_members(
    out: &mut impl Write,
    brackets: [char; 2],
    members: &[(Option<Value>, Value)],
    style: &JsonStyle,
    depth: usize,
) -> fmt::Result {
    out.write_char(brackets[0])?;
    for (i, (key, item)) in members.iter().enumerate() {
        out.write_str(if i > 0 { style.item() } else { "" })?;
        style.line(out, depth + 1)?;
        if let Some(key) = key {
            let mut text = String::new();
            write_str(&mut text, key)?;
            write_json_text(out, &text, style.ensure_ascii)?;
            out.write_str(style.key())?;
        }
        write_json(out, item, style, depth + 1)?;
    }
    if !members.is_empty() {
        style.line(out, depth)?;
    }
    out.write_char(brackets[1])
}

fn write_json_text(out: &mut impl Write, s: &str, ensure_ascii: bool) -> fmt::Result {
    out.write_char('"')?;
    for c in s.chars() {
        match c {
            '"' => out.write_str("\\\"")?,
            '\\' => out.write_str("\\\\")?,
            '\n' => out.write_str("\\n")?,
            '\r' => out.write_str("\\r")?,
            '\t' => out.write_str("\\t")?,
            '\u{8}' => out.write_str("\\b")?,
            '\u{c}' => out.write_str("\\f")?,
            c if c < ' ' => write!(out, "\\u{:04x}", u32::from(c))?,
            c if ensure_ascii && !c.is_ascii() => {
                let mut units = [0; 2];
                c.encode_utf16(&mut units).iter().try_for_each(|u| write!(out, "\\u{u:04x}"))?;
            }
            c => out.write_char(c)?,
        }
    }
    out.write_char('"')
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

/// `strftime` with the usual fields, for `seconds` since 1970 in universal time (a device may know no other).
pub fn strftime(format: &str, seconds: u64) -> String {
    let (days, time) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day, day_of_year) = civil(days);
    let (hour, minute, second) = (time / 3600, time / 60 % 60, time % 60);
    let hour12 = (hour + 11) % 12 + 1;
    let (month_name, day_name) = (MONTHS[month as usize - 1], DAYS[(days as usize + 4) % 7]);
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let field = chars.next();
        // Without a leading zero, as in %-d.
        let (bare, field) = if field == Some('-') { (true, chars.next()) } else { (false, field) };
        let mut number = |value: u64, width: usize| {
            let width = if bare { 0 } else { width };
            out.push_str(&format!("{value:0width$}"));
        };
        match field {
            Some('Y') => number(year, 4),
            Some('y') => number(year % 100, 2),
            Some('m') => number(month, 2),
            Some('d') => number(day, 2),
            Some('H') => number(hour, 2),
            Some('I') => number(hour12, 2),
            Some('M') => number(minute, 2),
            Some('S') => number(second, 2),
            Some('j') => number(day_of_year, 3),
            Some('B') => out.push_str(month_name),
            Some('b' | 'h') => out.push_str(&month_name[..3]),
            Some('A') => out.push_str(day_name),
            Some('a') => out.push_str(&day_name[..3]),
            Some('p') => out.push_str(if hour < 12 { "AM" } else { "PM" }),
            Some('F') => out.push_str(&format!("{year:04}-{month:02}-{day:02}")),
            Some('T') => out.push_str(&format!("{hour:02}:{minute:02}:{second:02}")),
            Some('Z') => out.push_str("UTC"),
            Some('z') => out.push_str("+0000"),
            Some('%') => out.push('%'),
            Some(other) => out.extend(['%', other]),
            None => out.push('%'),
        }
    }
    out
}

/// Year, month, day and day of the year of a day since 1970.
fn civil(mut days: u64) -> (u64, u64, u64, u64) {
    let leap = |y: u64| y.is_multiple_of(4) && (!y.is_multiple_of(100) || y.is_multiple_of(400));
    // 400 years are a whole number of days, so the loop is short whatever the clock says.
    let mut year = 1970 + days / 146_097 * 400;
    days %= 146_097;
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let day_of_year = days + 1;
    let lengths = [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 0;
    while days >= lengths[month] {
        days -= lengths[month];
        month += 1;
    }
    (year, month as u64 + 1, days + 1, day_of_year)
}
