//! Regular expressions, compiled to the runtime's small matcher or refused.
//!
//! Taken are alternatives, groups, classes (their insides are read by the `regex-syntax` crate), greedy and possessive
//! repeats of single characters, optional groups, and look-ahead at one character. That covers the split patterns in use.
//! Whatever else a pattern holds is refused by name, as is a pattern that the matcher could not run in bounded time.

use regex_syntax::ParserBuilder;
use regex_syntax::hir::{Class, HirKind};

use super::charset::{CharSet, Classes, Kinds};
use lora_runtime::tokenizer::layout::pattern as code;

type Result<T> = std::result::Result<T, String>;

/// Part of a pattern.
#[derive(Clone, Debug)]
enum Node {
    /// One character of a set.
    Set(CharSet),
    Repeat {
        node: Box<Self>,
        min: u32,
        max: Option<u32>,
        possessive: bool,
    },
    Sequence(Vec<Self>),
    Choice(Vec<Self>),
    /// The next character is (not) of a set.
    Ahead {
        set: CharSet,
        negative: bool,
    },
}

/// What can follow a part of a pattern.
#[derive(Clone)]
struct Follow {
    /// Characters it can begin with.
    first: CharSet,
    /// It may match nothing.
    nullable: bool,
    /// It cannot fail.
    certain: bool,
}

impl Follow {
    fn end() -> Self {
        Self { first: CharSet::default(), nullable: true, certain: true }
    }
}

/// A compiled pattern, whose classes are numbers in the tokenizer's list.
pub(super) struct Program {
    starts: Vec<u32>,
    first: Vec<CharSet>,
    instructions: Vec<[u8; 8]>,
}

impl Program {
    /// Compiles a regular expression.
    pub(super) fn regex(pattern: &str, classes: &mut Classes) -> Result<Self> {
        let mut parser = Parser { text: pattern, at: 0, depth: 0 };
        let node = parser.choice(false)?;
        if parser.at < pattern.len() {
            return Err(format!("`)` without `(` at byte {}", parser.at));
        }
        Self::new(node, classes)
    }

    /// Compiles a literal text.
    pub(super) fn literal(text: &str, classes: &mut Classes) -> Result<Self> {
        Self::new(Node::Sequence(text.chars().map(|c| Node::Set(CharSet::single(c))).collect()), classes)
    }

    fn new(node: Node, classes: &mut Classes) -> Result<Self> {
        let mut alternatives = Vec::new();
        flatten(node, &mut alternatives);
        let mut program = Self { starts: Vec::new(), first: Vec::new(), instructions: Vec::new() };
        for node in alternatives {
            let follow = before(&node, &Follow::end());
            if follow.nullable {
                return Err("it can match the empty text".into());
            }
            program.starts.push(program.instructions.len() as u32);
            program.first.push(follow.first);
            let from = program.instructions.len();
            program.emit(&node, &Follow::end(), classes)?;
            program.push(code::MATCH, 0, 0, 0);
            let choices = program.instructions[from..].iter().filter(|i| is_choice(**i)).count();
            let loops = program.instructions[from..].iter().filter(|i| is_loop(**i)).count();
            if choices > code::MAX_CHOICES || loops > 1 {
                return Err("it needs more backtracking than a device should do".into());
            }
        }
        if program.starts.len() > code::MAX_ALTERNATIVES || program.instructions.len() > code::MAX_INSTRUCTIONS {
            return Err("it is too long".into());
        }
        Ok(program)
    }

    fn push(&mut self, op: u8, flag: u8, arg: u32, word: u32) -> usize {
        let [a0, a1, ..] = arg.to_le_bytes();
        let [w0, w1, w2, w3] = word.to_le_bytes();
        self.instructions.push([op, flag, a0, a1, w0, w1, w2, w3]);
        self.instructions.len() - 1
    }

    fn aim(&mut self, at: usize) {
        let target = self.instructions.len() as u32;
        self.instructions[at][4..].copy_from_slice(&target.to_le_bytes());
    }

    fn emit(&mut self, node: &Node, follow: &Follow, classes: &mut Classes) -> Result<()> {
        match node {
            Node::Set(set) => match set.only() {
                Some(c) => {
                    self.push(code::CHAR, 0, 0, c.into());
                }
                None => {
                    self.push(code::CLASS, 0, classes.add(set.clone()), 0);
                }
            },
            Node::Ahead { set, negative } => {
                let op = if *negative { code::NOT_AHEAD } else { code::AHEAD };
                self.push(op, 0, classes.add(set.clone()), 0);
            }
            Node::Sequence(nodes) => {
                let mut follows = vec![follow.clone()];
                for node in nodes.iter().skip(1).rev() {
                    follows.push(before(node, follows.last().expect("not empty")));
                }
                for (node, follow) in nodes.iter().zip(follows.iter().rev()) {
                    self.emit(node, follow, classes)?;
                }
            }
            Node::Choice(nodes) => {
                let mut jumps = Vec::new();
                for (i, node) in nodes.iter().enumerate() {
                    let split = (i + 1 < nodes.len()).then(|| self.push(code::SPLIT, 0, 0, 0));
                    self.emit(node, follow, classes)?;
                    if let Some(split) = split {
                        jumps.push(self.push(code::JUMP, 0, 0, 0));
                        self.aim(split);
                    }
                }
                jumps.into_iter().for_each(|j| self.aim(j));
            }
            Node::Repeat { node, min, max, possessive } => match &**node {
                Node::Set(set) => {
                    // A repeat need not give anything back where what follows cannot fail, or cannot begin
                    // with what would be given back.
                    let fixed = *max == Some(*min);
                    let apart = !follow.nullable && !follow.first.intersects(set);
                    let keeps = *possessive || fixed || follow.certain || apart;
                    let limits = min | max.unwrap_or(0xffff) << 16;
                    self.push(code::REPEAT, keeps.into(), classes.add(set.clone()), limits);
                }
                node if *min == 0 && *max == Some(1) && !possessive => {
                    let split = self.push(code::SPLIT, 0, 0, 0);
                    self.emit(node, follow, classes)?;
                    self.aim(split);
                }
                node if *max == Some(*min) && !possessive => {
                    let all = Node::Sequence(vec![node.clone(); *min as usize]);
                    self.emit(&all, follow, classes)?;
                }
                _ => return Err("a repeated group".into()),
            },
        }
        if self.instructions.len() > code::MAX_INSTRUCTIONS {
            return Err("it is too long".into());
        }
        Ok(())
    }

    /// Whether a match can begin with a character of `set`.
    pub(super) fn begins_in(&self, set: &CharSet) -> bool {
        self.first.iter().any(|f| f.intersects(set))
    }

    /// The program as the blob holds it.
    pub(super) fn bytes(&self, kinds: &Kinds) -> Vec<u8> {
        let first = kinds.members.iter().map(|members| {
            let able = self.first.iter().enumerate().filter(|(_, f)| f.intersects(members));
            able.fold(0u32, |bits, (i, _)| bits | 1 << i)
        });
        let head = [self.starts.len() as u32, self.instructions.len() as u32, kinds.members.len() as u32];
        let mut out: Vec<u8> =
            head.into_iter().chain(self.starts.iter().copied()).chain(first).flat_map(u32::to_le_bytes).collect();
        out.extend(self.instructions.iter().flatten());
        out
    }
}

fn is_choice(i: [u8; 8]) -> bool {
    i[0] == code::SPLIT || (i[0] == code::REPEAT && i[1] == 0)
}

fn is_loop(i: [u8; 8]) -> bool {
    i[0] == code::REPEAT && i[1] == 0 && u16::from_le_bytes([i[6], i[7]]) > 4
}

/// Alternatives of a pattern, groups of alternatives taken apart.
fn flatten(node: Node, out: &mut Vec<Node>) {
    match node {
        Node::Choice(nodes) => nodes.into_iter().for_each(|n| flatten(n, out)),
        Node::Sequence(mut nodes) if nodes.len() == 1 => flatten(nodes.remove(0), out),
        node => out.push(node),
    }
}

/// What follows the place before `node`, given what follows `node`.
fn before(node: &Node, follow: &Follow) -> Follow {
    match node {
        Node::Set(set) => Follow { first: set.clone(), nullable: false, certain: false },
        // Anything may come next; the assertion decides.
        Node::Ahead { .. } => {
            Follow { first: CharSet::default().complement(), nullable: follow.nullable, certain: false }
        }
        Node::Sequence(nodes) => nodes.iter().rev().fold(follow.clone(), |follow, node| before(node, &follow)),
        Node::Choice(nodes) => {
            let all = nodes.iter().map(|n| before(n, follow));
            let mut out = Follow { first: CharSet::default(), nullable: false, certain: false };
            for f in all {
                out.first = out.first.union(&f.first);
                out.nullable |= f.nullable;
                out.certain |= f.certain;
            }
            out
        }
        Node::Repeat { node, min, .. } => {
            let inner = before(node, follow);
            if *min > 0 {
                return inner;
            }
            Follow { first: inner.first.union(&follow.first), nullable: follow.nullable, certain: follow.certain }
        }
    }
}

struct Parser<'p> {
    text: &'p str,
    at: usize,
    depth: u32,
}

impl Parser<'_> {
    fn rest(&self) -> &str {
        &self.text[self.at..]
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn eat(&mut self, what: &str) -> bool {
        let found = self.rest().starts_with(what);
        if found {
            self.at += what.len();
        }
        found
    }

    fn choice(&mut self, fold: bool) -> Result<Node> {
        let mut nodes = vec![self.sequence(fold)?];
        while self.eat("|") {
            nodes.push(self.sequence(fold)?);
        }
        Ok(if nodes.len() == 1 { nodes.remove(0) } else { Node::Choice(nodes) })
    }

    fn sequence(&mut self, fold: bool) -> Result<Node> {
        let mut nodes = Vec::new();
        while let Some(c) = self.peek() {
            if c == '|' || c == ')' {
                break;
            }
            let node = self.atom(fold)?;
            nodes.push(self.repeats(node)?);
        }
        Ok(Node::Sequence(nodes))
    }

    fn repeats(&mut self, mut node: Node) -> Result<Node> {
        loop {
            let braces = self.peek() == Some('{');
            let (min, max) = match self.peek() {
                Some('?') => (0, Some(1)),
                Some('*') => (0, None),
                Some('+') => (1, None),
                Some('{') => {
                    let end = self.rest().find('}').ok_or("`{` without `}`")?;
                    let inside = self.rest()[1..end].to_owned();
                    let number = |s: &str| s.parse::<u32>().ok().filter(|n| *n < 0xffff);
                    let limits = match inside.split_once(',') {
                        None => number(&inside).map(|n| (n, Some(n))),
                        Some((min, "")) => number(min).map(|n| (n, None)),
                        Some((min, max)) => number(min).zip(number(max)).map(|(a, b)| (a, Some(b))),
                    };
                    let limits = limits.filter(|(a, b)| b.is_none_or(|b| *a <= b));
                    self.at += end;
                    limits.ok_or(format!("repeat {{{inside}}}"))?
                }
                _ => return Ok(node),
            };
            self.at += 1;
            if self.eat("?") {
                return Err("a lazy repeat".into());
            }
            let possessive = self.eat("+");
            if possessive && braces {
                return Err("`{…}+`, which engines read differently".into());
            }
            if matches!(node, Node::Ahead { .. } | Node::Repeat { .. }) {
                return Err("a repeat of a repeat or assertion".into());
            }
            node = Node::Repeat { node: Box::new(node), min, max, possessive };
        }
    }

    fn atom(&mut self, fold: bool) -> Result<Node> {
        let c = self.peek().ok_or("unexpected end")?;
        match c {
            '(' => self.group(fold),
            '[' => {
                let end = class_end(self.rest())?;
                let class = self.rest()[..end].to_owned();
                self.at += end;
                for odd in ["[:", "--", "~~"] {
                    if class.contains(odd) {
                        return Err(format!("`{odd}` in a class, which engines read differently"));
                    }
                }
                check_escapes(&class)?;
                set(&class, fold).map(Node::Set)
            }
            '\\' => {
                let end = escape_end(self.rest())?;
                let escape = self.rest()[..end].to_owned();
                self.at += end;
                check_escapes(&escape)?;
                set(&escape, fold).map(Node::Set)
            }
            '.' => {
                self.at += 1;
                Ok(Node::Set(CharSet::single('\n').complement()))
            }
            '^' | '$' => Err(format!("the anchor `{c}`")),
            '*' | '+' | '?' | '{' | '}' | ']' => Err(format!("`{c}` without what it belongs to")),
            c => {
                self.at += c.len_utf8();
                set(&regex_syntax::escape(c.encode_utf8(&mut [0; 4])), fold).map(Node::Set)
            }
        }
    }

    fn group(&mut self, fold: bool) -> Result<Node> {
        self.depth += 1;
        if self.depth > 16 {
            return Err("groups nested too deeply".into());
        }
        let ahead = if self.eat("(?=") {
            Some(false)
        } else if self.eat("(?!") {
            Some(true)
        } else {
            None
        };
        let mut fold = fold;
        if ahead.is_none() {
            if self.eat("(?i:") {
                fold = true;
            } else if self.eat("(?:") {
            } else if self.rest().starts_with("(?") {
                let shown: String = self.rest().chars().take(4).collect();
                return Err(format!("the group `{shown}`"));
            } else {
                self.at += 1;
            }
        }
        let node = self.choice(fold)?;
        if !self.eat(")") {
            return Err("`(` without `)`".into());
        }
        self.depth -= 1;
        match (ahead, node) {
            (None, node) => Ok(node),
            (Some(negative), node) => {
                let mut alternatives = Vec::new();
                flatten(node, &mut alternatives);
                match &alternatives[..] {
                    [Node::Set(set)] => Ok(Node::Ahead { set: set.clone(), negative }),
                    _ => Err("look-ahead at more than one character".into()),
                }
            }
        }
    }
}

/// Length of the class that `text` begins with.
fn class_end(text: &str) -> Result<usize> {
    let (mut depth, mut at, mut first) = (0, 0, false);
    while let Some(c) = text[at..].chars().next() {
        match c {
            '\\' => {
                at += escape_end(&text[at..])?;
                first = false;
                continue;
            }
            '[' => {
                depth += 1;
                first = true;
                at += 1;
                if text[at..].starts_with('^') {
                    at += 1;
                }
                continue;
            }
            ']' if first => return Err("`]` at the start of a class, which engines read differently".into()),
            ']' => {
                depth -= 1;
                if depth == 0 {
                    return Ok(at + 1);
                }
            }
            _ => {}
        }
        first = false;
        at += c.len_utf8();
    }
    Err("`[` without `]`".into())
}

/// Length of the escape that `text` begins with.
fn escape_end(text: &str) -> Result<usize> {
    let c = text[1..].chars().next().ok_or("`\\` at the end")?;
    let head = 1 + c.len_utf8();
    let braces = || text[head..].starts_with('{').then(|| text.find('}').map(|i| i + 1).ok_or("`{` without `}`"));
    match c {
        'p' | 'P' => braces().unwrap_or(Err("a property without braces")).map_err(Into::into),
        'x' => match braces() {
            Some(end) => end.map_err(Into::into),
            None if text[head..].len() >= 2 && text.is_char_boundary(head + 2) => Ok(head + 2),
            None => Err("an unfinished escape".into()),
        },
        'u' if text[head..].len() >= 4 && text.is_char_boundary(head + 4) => Ok(head + 4),
        'u' => Err("an unfinished escape".into()),
        _ => Ok(head),
    }
}

/// Refuses escapes that engines read differently.
fn check_escapes(text: &str) -> Result<()> {
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        let end = at + escape_end(&rest[at..])?;
        let c = rest[at + 1..].chars().next().unwrap_or('\\');
        if c.is_alphanumeric() && !"pPsSdDwWrntfvxu".contains(c) {
            return Err(format!("the escape `\\{c}`"));
        }
        rest = &rest[end..];
    }
    Ok(())
}

/// The set of a class such as `\w`.
pub(super) fn class(text: &str) -> Option<CharSet> {
    set(text, false).ok()
}

/// The set that a class, escape or character stands for.
fn set(text: &str, fold: bool) -> Result<CharSet> {
    let hir = ParserBuilder::new()
        .case_insensitive(fold)
        .build()
        .parse(text)
        .map_err(|_| format!("`{text}` is no known class"))?;
    match hir.kind() {
        HirKind::Class(Class::Unicode(class)) => {
            Ok(CharSet::new(class.iter().map(|r| (r.start().into(), r.end().into())).collect()))
        }
        HirKind::Class(Class::Bytes(class)) => {
            Ok(CharSet::new(class.iter().map(|r| (r.start().into(), r.end().into())).collect()))
        }
        HirKind::Literal(literal) => match std::str::from_utf8(&literal.0).map(|s| s.chars().collect::<Vec<_>>()) {
            Ok(chars) if chars.len() == 1 => Ok(CharSet::single(chars[0])),
            _ => Err(format!("`{text}` is more than one character")),
        },
        _ => Err(format!("`{text}` is no class")),
    }
}
