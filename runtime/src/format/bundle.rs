//! A bundle: a base and named adapters in one file, each a whole file at a page boundary, used in place.

use super::record::{FileKind, MemberRecord, SectionId, WEIGHTS_ALIGN};
use super::view::{Sections, check_header};
use crate::error::{Error, ErrorKind, Result};

/// A verified bundle. Its members are verified when they are opened.
#[derive(Clone, Copy)]
pub struct Bundle<'a> {
    strings: &'a str,
    members: &'a [MemberRecord],
    data: &'a [u8],
}

impl<'a> Bundle<'a> {
    /// Whether the bytes begin as a bundle does.
    #[must_use]
    pub fn is_bundle(bytes: &[u8]) -> bool {
        check_header(bytes).is_ok_and(|h| h.kind == FileKind::Bundle as u32)
    }

    /// Verifies the container (64-byte aligned).
    ///
    /// # Errors
    /// A typed error naming the section or the member; [`ErrorKind::Mismatch`] for a file of another kind.
    pub fn open(bytes: &'a [u8]) -> Result<Self> {
        let header = check_header(bytes)?;
        if header.kind != FileKind::Bundle as u32 {
            return Err(Error::new(ErrorKind::Mismatch, "header.kind: not a bundle").values(header.kind.into(), 3));
        }
        let sections = Sections::new_checked(bytes, header)?;
        let strings = core::str::from_utf8(sections.blob(SectionId::Strings))
            .map_err(|e| Error::new(ErrorKind::Invalid, "strings: not UTF-8").values(e.valid_up_to() as u64, 0))?;
        let members: &[MemberRecord] = sections.records(SectionId::Members)?;
        let bundle = Self { strings, members, data: sections.blob(SectionId::Weights) };
        for (i, m) in members.iter().enumerate() {
            let fail = |kind, what| Err(Error::new(kind, what).index(i as u64));
            let kind = if i == 0 { FileKind::Model } else { FileKind::Adapter };
            if m.kind != kind as u32 || m.reserved != 0 {
                return fail(ErrorKind::Invalid, "members.kind");
            }
            let end = m.name.offset as usize + m.name.len as usize;
            if strings.get(m.name.offset as usize..end).is_none() {
                return fail(ErrorKind::OutOfBounds, "members.name");
            }
            if i > 1 && bundle.name(&members[i - 1]) >= bundle.name(m) {
                return fail(ErrorKind::Invalid, "members: names not in order");
            }
            if m.offset % WEIGHTS_ALIGN != 0 {
                return fail(ErrorKind::Misaligned, "members.offset");
            }
            if m.offset.checked_add(m.len).is_none_or(|end| end > bundle.data.len() as u64) {
                return fail(ErrorKind::OutOfBounds, "members.len");
            }
        }
        match members {
            [] => Err(Error::new(ErrorKind::Invalid, "members: none")),
            _ => Ok(bundle),
        }
    }

    /// The base's file.
    #[must_use]
    pub fn base(&self) -> &'a [u8] {
        self.bytes(&self.members[0])
    }

    /// Names and files of the adapters, by name.
    pub fn adapters(&self) -> impl Iterator<Item = (&'a str, &'a [u8])> + use<'a> {
        let bundle = *self;
        bundle.members[1..].iter().map(move |m| (bundle.name(m), bundle.bytes(m)))
    }

    /// The file of the adapter of that name.
    #[must_use]
    pub fn adapter(&self, name: &str) -> Option<&'a [u8]> {
        let adapters = &self.members[1..];
        let i = adapters.binary_search_by(|m| self.name(m).cmp(name)).ok()?;
        Some(self.bytes(&adapters[i]))
    }

    fn name(&self, m: &MemberRecord) -> &'a str {
        self.strings.get(m.name.offset as usize..m.name.offset as usize + m.name.len as usize).unwrap_or("")
    }

    fn bytes(&self, m: &MemberRecord) -> &'a [u8] {
        &self.data[m.offset as usize..(m.offset + m.len) as usize]
    }
}
