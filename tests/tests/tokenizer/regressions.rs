//! Texts over which a compiled tokenizer once differed from the reference, or that are known to be hard.

pub const TEXTS: &[&str] = &[
    "",
    // A value in a trie looked like a child.
    "uc",
    "uC",
    "\u{fc}c",
    " ",
    "\u{a0}",
    "\u{301}",
    "a\u{301}\u{323}",
    "\u{ac00}\u{11a8}",
    "\u{fdfa}",
    "\u{130}",
    "'\u{17f}",
    "1\u{663}2",
    "\u{2581}\u{2581}a",
    "<0x0A>\n",
    "\u{1f468}\u{200d}\u{1f469}",
];
