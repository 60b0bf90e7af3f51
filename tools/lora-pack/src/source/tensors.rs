//! All tensors of a model or an adapter under their names, wherever they are stored.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use super::arrange::Arrangement;
use super::bnb::{Coded, CodedView, RoundTrip};
use super::map::MappedFile;
use super::{Dtype, SourceError, safetensors};

/// Name → stored tensor, sorted by name. The bytes stay in the mapped files.
#[derive(Debug, Default)]
pub struct TensorIndex {
    files: Vec<MappedFile>,
    entries: BTreeMap<String, Stored>,
}

#[derive(Debug)]
struct Stored {
    file: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    data: Data,
    arrangement: Arrangement,
    coded: Option<Coded>,
    round_trip: Option<RoundTrip>,
}

/// Some bytes of one of the files.
#[derive(Debug, Clone)]
pub(super) struct Place {
    file: usize,
    range: Range<usize>,
}

#[derive(Debug)]
enum Data {
    Mapped(Range<usize>),
    /// Gathered from a strided view of a pickled tensor.
    Owned(Vec<u8>),
    /// Not stored as such: a pack's values are computed (`packed`).
    Packed,
}

/// One stored tensor.
#[derive(Debug, Clone, Copy)]
pub struct TensorView<'a> {
    /// Name as the file spells it.
    pub name: &'a str,
    /// The file that holds it.
    pub file: &'a Path,
    /// Element type.
    pub dtype: Dtype,
    /// Dimensions, outermost first.
    pub shape: &'a [usize],
    /// Its little-endian bytes, at any alignment; none of a pack's.
    pub bytes: &'a [u8],
    /// How the bytes' order differs from the shape's.
    pub arrangement: Arrangement,
    /// Where the bytes are codes: what turns them into numbers of `dtype`.
    pub coded: Option<CodedView<'a>>,
    /// What is done to the numbers when they are read.
    pub round_trip: Option<RoundTrip>,
}

impl TensorIndex {
    /// Gives memory of mapped pages back (see `MappedFile::release`).
    pub fn release(&self) {
        self.files.iter().for_each(MappedFile::release);
    }

    /// Opens one safetensors file.
    pub fn open(path: &Path) -> Result<Self, SourceError> {
        let mut index = Self::default();
        index.add_safetensors(path, |_| true)?;
        Ok(index)
    }

    /// Adds those tensors of a safetensors file that `wanted` names; the whole header is checked either way.
    pub(super) fn add_safetensors(&mut self, path: &Path, wanted: impl Fn(&str) -> bool) -> Result<(), SourceError> {
        let file = MappedFile::open(path)?;
        let header = safetensors::parse(path, file.bytes())?;
        let number = self.add_file(file);
        for t in header.tensors.into_iter().filter(|t| wanted(&t.name)) {
            self.add_arranged(number, t.name, t.dtype, t.shape, t.range, Arrangement::Same)?;
        }
        Ok(())
    }

    pub(super) fn add_file(&mut self, file: MappedFile) -> usize {
        self.files.push(file);
        self.files.len() - 1
    }

    pub(super) fn add_mapped(
        &mut self,
        file: usize,
        name: String,
        dtype: Dtype,
        shape: Vec<usize>,
        range: Range<usize>,
    ) -> Result<(), SourceError> {
        self.add_arranged(file, name, dtype, shape, range, Arrangement::Same)
    }

    pub(super) fn add_arranged(
        &mut self,
        file: usize,
        name: String,
        dtype: Dtype,
        shape: Vec<usize>,
        range: Range<usize>,
        arrangement: Arrangement,
    ) -> Result<(), SourceError> {
        let data = Data::Mapped(range);
        self.insert(name, Stored { file, dtype, shape, data, arrangement, coded: None, round_trip: None })
    }

    pub(super) fn add_owned(
        &mut self,
        file: usize,
        name: String,
        dtype: Dtype,
        shape: Vec<usize>,
        bytes: Vec<u8>,
    ) -> Result<(), SourceError> {
        let (data, arrangement) = (Data::Owned(bytes), Arrangement::Same);
        self.insert(name, Stored { file, dtype, shape, data, arrangement, coded: None, round_trip: None })
    }

    /// Adds a tensor that a pack was made of: its name and shape.
    pub(super) fn add_packed(&mut self, file: usize, name: String, shape: Vec<usize>) -> Result<(), SourceError> {
        let (data, arrangement, dtype) = (Data::Packed, Arrangement::Same, Dtype::F32);
        self.insert(name, Stored { file, dtype, shape, data, arrangement, coded: None, round_trip: None })
    }

    fn insert(&mut self, name: String, stored: Stored) -> Result<(), SourceError> {
        if let Some(other) = self.entries.get(&name) {
            let other = self.files[other.file].path().display().to_string();
            let problem = format!("duplicate: it is also in {other}");
            return Err(SourceError::tensor(self.files[stored.file].path(), name, problem));
        }
        self.entries.insert(name, stored);
        Ok(())
    }

    /// Takes a tensor out.
    pub(super) fn remove(&mut self, name: &str) {
        self.entries.remove(name);
    }

    /// Where a tensor's bytes are.
    pub(super) fn place(&self, name: &str) -> Option<Place> {
        let stored = self.entries.get(name)?;
        match &stored.data {
            Data::Mapped(range) => Some(Place { file: stored.file, range: range.clone() }),
            Data::Owned(_) | Data::Packed => None,
        }
    }

    /// Says that a tensor's bytes are codes for one of that type and shape.
    pub(super) fn set_coded(
        &mut self,
        name: &str,
        dtype: Dtype,
        shape: Vec<usize>,
        arrangement: Arrangement,
        coded: Coded,
    ) {
        if let Some(stored) = self.entries.get_mut(name) {
            (stored.dtype, stored.shape, stored.arrangement, stored.coded) = (dtype, shape, arrangement, Some(coded));
        }
    }

    /// Has a tensor quantized and dequantized whenever it is read.
    pub(super) fn set_round_trip(&mut self, name: &str, round_trip: RoundTrip) {
        if let Some(stored) = self.entries.get_mut(name) {
            stored.round_trip = Some(round_trip);
        }
    }

    /// How many tensors there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether there is a tensor of that name.
    pub fn contains(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    /// The tensor of that name.
    pub fn get(&self, name: &str) -> Option<TensorView<'_>> {
        self.entries.get_key_value(name).map(|(name, s)| self.view(name, s))
    }

    /// All tensors, sorted by name.
    pub fn iter(&self) -> impl Iterator<Item = TensorView<'_>> {
        self.entries.iter().map(|(name, s)| self.view(name, s))
    }

    fn view<'a>(&'a self, name: &'a str, s: &'a Stored) -> TensorView<'a> {
        let file = &self.files[s.file];
        let bytes = match &s.data {
            Data::Mapped(range) => &file.bytes()[range.clone()],
            Data::Owned(bytes) => bytes,
            Data::Packed => &[],
        };
        let coded = s.coded.as_ref().map(|coded| {
            let scales = coded.scales().map_or(&[][..], |at| &self.files[at.file].bytes()[at.range.clone()]);
            CodedView { coded, scales }
        });
        TensorView {
            name,
            file: file.path(),
            dtype: s.dtype,
            shape: &s.shape,
            bytes,
            arrangement: s.arrangement,
            coded,
            round_trip: s.round_trip,
        }
    }
}

impl TensorView<'_> {
    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    fn is_stored(&self) -> bool {
        !self.bytes.is_empty() || self.elements() == 0
    }

    /// Whether the bytes are the elements themselves, in `dtype`.
    pub fn is_plain(&self) -> bool {
        self.is_stored() && self.coded.is_none() && self.round_trip.is_none()
    }

    /// Whether both hold the same elements, by their bytes.
    pub fn same_as(&self, other: &TensorView<'_>) -> bool {
        self.is_plain()
            && other.is_plain()
            && (self.dtype, self.arrangement, self.shape, self.bytes)
                == (other.dtype, other.arrangement, other.shape, other.bytes)
    }

    /// The elements as f32: half types widen exactly, blocks as their format says, F64 rounds to nearest, integers are
    /// refused.
    pub fn read_f32(&self) -> Result<Vec<f32>, SourceError> {
        if !self.is_stored() {
            return Err(self.problem("only the pack's own reader gives its values"));
        }
        let mut out = vec![0.0; self.elements()];
        match &self.coded {
            Some(coded) => coded.read(self.bytes, self.stored_columns(), self.dtype, 0, &mut out),
            None if self.dtype.widen(self.bytes, &mut out) => {}
            None => {
                return Err(self.problem(format!("dtype {} where a floating-point one is needed", self.dtype.name())));
            }
        }
        let out = self.arrangement.undo(out, self.shape);
        Ok(match self.round_trip {
            Some(round_trip) => round_trip.apply(out, self.shape, self.dtype),
            None => out,
        })
    }

    /// Elements of a row, as they are stored.
    fn stored_columns(&self) -> usize {
        self.arrangement.stored_shape(self.shape.to_vec()).last().copied().unwrap_or(1).max(1)
    }

    /// Whether [`TensorView::read_rows`] can read rows of `width` elements.
    pub fn has_rows(&self, width: usize) -> bool {
        let whole = width > 0 && width.is_multiple_of(self.dtype.block()) && self.elements().is_multiple_of(width);
        let in_place = match self.arrangement {
            Arrangement::Same | Arrangement::Row | Arrangement::PlusOne => true,
            Arrangement::Pairs { .. } | Arrangement::Blocks { .. } => {
                self.shape == [self.elements() / width.max(1), width]
            }
            Arrangement::Transposed => false,
        };
        self.is_stored() && self.round_trip.is_none() && whole && in_place
    }

    /// Some rows of `width` elements, `first` and those after it, as [`TensorView::read_f32`] gives them.
    ///
    /// # Panics
    /// When there are not so many, or [`TensorView::has_rows`] says no.
    pub fn read_rows(&self, first: usize, width: usize, out: &mut [f32]) -> Result<(), SourceError> {
        if let Some(coded) = &self.coded {
            coded.read(self.bytes, self.stored_columns(), self.dtype, first * width, out);
            return Ok(());
        }
        let row = width / self.dtype.block() * self.dtype.size();
        let widen = |first: usize, out: &mut [f32]| {
            let bytes = &self.bytes[first * row..][..out.len() / width * row];
            match self.dtype.widen(bytes, out) {
                true => Ok(()),
                false => Err(self.problem(format!("dtype {} where a floating-point one is needed", self.dtype.name()))),
            }
        };
        match self.arrangement {
            Arrangement::Pairs { .. } | Arrangement::Blocks { .. } => {
                let rows = self.elements() / width;
                for (i, out) in out.chunks_exact_mut(width).enumerate() {
                    widen(self.arrangement.stored_row(first + i, rows), out)?;
                }
            }
            Arrangement::Same | Arrangement::Row | Arrangement::PlusOne | Arrangement::Transposed => {
                widen(first, out)?;
                if self.arrangement == Arrangement::PlusOne {
                    out.iter_mut().for_each(|v| *v -= 1.0);
                }
            }
        }
        Ok(())
    }

    /// The first element that is NaN or infinite, found without widening the whole tensor at once.
    pub fn first_not_finite(&self) -> Result<Option<(usize, f32)>, SourceError> {
        const CHUNK: usize = 1 << 16;
        let mut wide = vec![0.0; CHUNK.min(self.elements())];
        let block = self.dtype.block();
        for (i, bytes) in self.bytes.chunks(CHUNK / block * self.dtype.size()).enumerate() {
            let wide = &mut wide[..bytes.len() / self.dtype.size() * block];
            if !self.dtype.widen(bytes, wide) {
                return Err(self.problem(format!("dtype {} where a floating-point one is needed", self.dtype.name())));
            }
            if let Some(at) = wide.iter().position(|x| !x.is_finite()) {
                return Ok(Some((i * CHUNK + at, wide[at])));
            }
        }
        Ok(None)
    }

    /// The elements as integers (I32, I64), for the few adapter tensors that hold positions.
    pub fn read_i64(&self) -> Result<Vec<i64>, SourceError> {
        match self.dtype {
            Dtype::I64 => Ok(self.bytes.as_chunks().0.iter().map(|b| i64::from_le_bytes(*b)).collect()),
            Dtype::I32 => Ok(self.bytes.as_chunks().0.iter().map(|b| i32::from_le_bytes(*b).into()).collect()),
            other => Err(self.problem(format!("dtype {} where integers are needed", other.name()))),
        }
    }

    /// An error about this tensor.
    pub fn problem(&self, problem: impl Into<String>) -> SourceError {
        SourceError::tensor(self.file, self.name, problem)
    }
}
