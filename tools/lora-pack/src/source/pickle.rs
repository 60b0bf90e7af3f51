//! `adapter_model.bin`: a zip with a pickle of tensors, read without executing anything.
//!
//! A pickle is a program for a small stack machine that may call any Python function. This reader knows the
//! instructions that `torch.save` emits for a dictionary of tensors and the handful of names they refer to. Whatever
//! else a file asks for is refused by name. "Calling" one of the known functions builds a description of a tensor;
//! there is no interpreter behind it.
//!
//! Values live in one arena and refer to each other by number, so nothing recurses: neither deep nesting nor cycles
//! can exhaust the stack, and the number of values is bounded.

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;
use std::rc::Rc;

use super::map::MappedFile;
use super::{Dtype, SourceError, TensorIndex, quote, zip};

/// An adapter with thousands of tensors needs some hundred kilobytes.
const MAX_PICKLE: usize = 8 << 20;
const MAX_VALUES: usize = 1 << 19;
const MAX_DIMS: usize = 32;

/// Opens a pickled state dict as an index of tensors.
pub fn open(path: &Path) -> Result<TensorIndex, SourceError> {
    let file = MappedFile::open(path)?;
    let bad = |problem: &str| SourceError::file(path, format!("{problem}; save the adapter as safetensors"));
    if !file.bytes().starts_with(b"PK") {
        return Err(bad("not a zip archive (a pickle of torch before 1.6, perhaps)"));
    }
    let entries = zip::entries(path, file.bytes())?;
    let mut pickles = entries.iter().filter(|(name, _)| name.as_str() == "data.pkl" || name.ends_with("/data.pkl"));
    let (Some((name, range)), None) = (pickles.next(), pickles.next()) else {
        return Err(bad("the archive does not hold exactly one data.pkl"));
    };
    let folder = name.strip_suffix("data.pkl").unwrap_or_default();
    if let Some(order) = entries.get(&format!("{folder}byteorder"))
        && file.bytes()[order.clone()] != *b"little"
    {
        return Err(bad("the tensors are not little-endian"));
    }
    if range.len() > MAX_PICKLE {
        return Err(bad("data.pkl is larger than any state dict needs"));
    }
    let tensors = Machine::new(&file.bytes()[range.clone()])
        .run()
        .map_err(|e| bad(&format!("its pickle is not a plain dictionary of tensors: {e}; nothing was executed")))?;

    let mut index = TensorIndex::default();
    let mut placed = Vec::with_capacity(tensors.len());
    for (name, tensor) in tensors {
        let bytes = entries.get(&format!("{folder}data/{}", tensor.storage)).map(|r| &file.bytes()[r.clone()]);
        let data = match bytes {
            Some(bytes) => tensor.locate(bytes),
            None => Err(format!("its storage {} is not in the archive", quote(&tensor.storage))),
        };
        let data = data.map_err(|problem| SourceError::tensor(path, &*name, problem))?;
        let start = entries[&format!("{folder}data/{}", tensor.storage)].start;
        placed.push((name, tensor, data, start));
    }
    let number = index.add_file(file);
    for (name, tensor, data, start) in placed {
        match data {
            Located::Run(r) => {
                index.add_mapped(
                    number,
                    name.to_string(),
                    tensor.dtype,
                    tensor.shape,
                    start + r.start..start + r.end,
                )?;
            }
            Located::Gathered(bytes) => index.add_owned(number, name.to_string(), tensor.dtype, tensor.shape, bytes)?,
        }
    }
    Ok(index)
}

/// A tensor as the pickle describes it: a strided view of a storage.
#[derive(Debug, Clone, PartialEq)]
struct Described {
    storage: Rc<str>,
    dtype: Dtype,
    offset: usize,
    shape: Vec<usize>,
    stride: Vec<usize>,
}

enum Located {
    Run(Range<usize>),
    Gathered(Vec<u8>),
}

impl Described {
    /// Finds the elements in the storage; copies them when they do not lie in a row.
    fn locate(&self, storage: &[u8]) -> Result<Located, String> {
        let size = self.dtype.size();
        let overflow = || format!("shape {:?} with stride {:?} overflows", self.shape, self.stride);
        let count = self.shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).ok_or_else(overflow)?;
        let have = storage.len() / size;
        if count == 0 {
            return Ok(Located::Run(0..0));
        }
        // An expanded view could describe more elements than are stored; no state dict needs that.
        let last = self
            .shape
            .iter()
            .zip(&self.stride)
            .try_fold(self.offset, |at, (&d, &s)| at.checked_add((d - 1).checked_mul(s)?));
        if last.ok_or_else(overflow)? >= have || count > have {
            return Err(format!("shape {:?} reaches past the end of its storage of {have} elements", self.shape));
        }
        let mut dense = 1;
        let in_a_row = self.shape.iter().zip(&self.stride).rev().all(|(&d, &s)| {
            let fits = d == 1 || s == dense;
            dense *= d;
            fits
        });
        if in_a_row {
            return Ok(Located::Run(self.offset * size..(self.offset + count) * size));
        }
        let mut out = Vec::with_capacity(count * size);
        let mut at = vec![0; self.shape.len()];
        for _ in 0..count {
            let element = self.offset + at.iter().zip(&self.stride).map(|(i, s)| i * s).sum::<usize>();
            out.extend_from_slice(&storage[element * size..(element + 1) * size]);
            for (i, &d) in at.iter_mut().zip(&self.shape).rev() {
                *i += 1;
                if *i < d {
                    break;
                }
                *i = 0;
            }
        }
        Ok(Located::Gathered(out))
    }
}

/// The names that a state dict may refer to.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Known {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    Storage(Dtype),
}

impl Known {
    fn find(module: &str, name: &str) -> Result<Self, String> {
        let dtype = |name: &str| {
            Some(match name {
                "DoubleStorage" => Dtype::F64,
                "FloatStorage" => Dtype::F32,
                "HalfStorage" => Dtype::F16,
                "BFloat16Storage" => Dtype::BF16,
                "LongStorage" => Dtype::I64,
                "IntStorage" => Dtype::I32,
                _ => return None,
            })
        };
        match (module, name) {
            ("collections", "OrderedDict") => Ok(Self::OrderedDict),
            ("torch._utils", "_rebuild_tensor_v2") => Ok(Self::RebuildTensor),
            ("torch._utils", "_rebuild_parameter") => Ok(Self::RebuildParameter),
            ("torch", name) if dtype(name).is_some() => Ok(Self::Storage(dtype(name).unwrap_or(Dtype::F32))),
            _ => Err(format!("it refers to {}", quote(&format!("{module}.{name}")))),
        }
    }
}

type Id = u32;

#[derive(Debug)]
enum Value {
    Nothing,
    Int(i64),
    /// Shared: recalling a string must not copy it.
    Text(Rc<str>),
    Known(Known),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Storage(Rc<str>, Dtype),
    Tensor(Described),
}

struct Machine<'a> {
    code: &'a [u8],
    values: Vec<Value>,
    stack: Vec<Id>,
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

impl<'a> Machine<'a> {
    fn new(code: &'a [u8]) -> Self {
        Self { code, values: Vec::new(), stack: Vec::new(), marks: Vec::new(), memo: HashMap::new() }
    }

    fn take(&mut self, n: usize) -> Result<&'a [u8], String> {
        let (head, tail) = self.code.split_at_checked(n).ok_or("it is truncated")?;
        self.code = tail;
        Ok(head)
    }

    fn number<const N: usize>(&mut self) -> Result<u64, String> {
        let mut le = [0; 8];
        le[..N].copy_from_slice(self.take(N)?);
        Ok(u64::from_le_bytes(le))
    }

    fn line(&mut self) -> Result<&'a str, String> {
        let end = self.code.iter().position(|&b| b == b'\n').ok_or("it is truncated")?;
        let line = self.take(end + 1)?;
        std::str::from_utf8(&line[..end]).map_err(|_| "a name is not UTF-8".into())
    }

    fn text(&mut self, len: u64) -> Result<(), String> {
        let bytes = self.take(usize::try_from(len).map_err(|_| "it is truncated")?)?;
        let text = std::str::from_utf8(bytes).map_err(|_| "a string is not UTF-8")?;
        self.push(Value::Text(text.into()))
    }

    fn push(&mut self, value: Value) -> Result<(), String> {
        if self.values.len() == MAX_VALUES {
            return Err("it has too many values".into());
        }
        self.values.push(value);
        self.stack.push((self.values.len() - 1) as Id);
        Ok(())
    }

    fn pop(&mut self) -> Result<Id, String> {
        self.stack.pop().ok_or_else(|| "its stack runs empty".into())
    }

    fn pop_many(&mut self, n: usize) -> Result<Vec<Id>, String> {
        let at = self.stack.len().checked_sub(n).ok_or("its stack runs empty")?;
        Ok(self.stack.split_off(at))
    }

    /// What was pushed since the last mark.
    fn pop_mark(&mut self) -> Result<Vec<Id>, String> {
        let at = self.marks.pop().filter(|&at| at <= self.stack.len()).ok_or("a mark is missing")?;
        Ok(self.stack.split_off(at))
    }

    fn value(&self, id: Id) -> &Value {
        &self.values[id as usize]
    }

    fn tuple(&self, id: Id) -> Result<&[Id], String> {
        match self.value(id) {
            Value::Tuple(items) => Ok(items),
            other => Err(format!("a tuple is needed where {} stands", other.kind())),
        }
    }

    fn sizes(&self, id: Id) -> Result<Vec<usize>, String> {
        let items = self.tuple(id)?;
        if items.len() > MAX_DIMS {
            return Err(format!("a tensor has {} dimensions", items.len()));
        }
        items.iter().map(|&id| self.size(id)).collect()
    }

    fn size(&self, id: Id) -> Result<usize, String> {
        match self.value(id) {
            Value::Int(n) => usize::try_from(*n).map_err(|_| "a size is negative".into()),
            other => Err(format!("a size is needed where {} stands", other.kind())),
        }
    }

    fn set_items(&mut self, items: Vec<Id>) -> Result<(), String> {
        let dict = *self.stack.last().ok_or("its stack runs empty")?;
        let Value::Dict(pairs) = &mut self.values[dict as usize] else {
            return Err("it sets items of something that is no dictionary".into());
        };
        if !items.len().is_multiple_of(2) {
            return Err("a dictionary key has no value".into());
        }
        pairs.extend(items.as_chunks::<2>().0.iter().map(|[k, v]| (*k, *v)));
        Ok(())
    }

    /// Runs to the stop instruction and takes the tensors out of the dictionary that is left.
    fn run(mut self) -> Result<Vec<(Rc<str>, Described)>, String> {
        loop {
            let op = self.take(1)?[0];
            if op == b'.' {
                break;
            }
            self.step(op)?;
        }
        let root = self.pop()?;
        let Value::Dict(pairs) = self.value(root) else {
            return Err(format!("it holds {} instead of a dictionary", self.value(root).kind()));
        };
        pairs
            .iter()
            .map(|&(k, v)| match (self.value(k), self.value(v)) {
                (Value::Text(name), Value::Tensor(t)) => Ok((name.clone(), t.clone())),
                (Value::Text(name), other) => Err(format!("{} is {}, not a tensor", quote(name), other.kind())),
                (other, _) => Err(format!("{} is used as a name", other.kind())),
            })
            .collect()
    }

    fn step(&mut self, op: u8) -> Result<(), String> {
        match op {
            0x80 => match self.take(1)?[0] {
                2..=5 => Ok(()),
                other => Err(format!("its protocol is {other}")),
            },
            0x95 => self.take(8).map(|_| ()), // FRAME
            b'(' => {
                self.marks.push(self.stack.len());
                Ok(())
            }
            b'0' => self.pop().map(|_| ()),
            b'N' | 0x88 | 0x89 => self.push(Value::Nothing), // None, True, False: flags that do not matter here
            b'K' => self.number::<1>().and_then(|n| self.push(Value::Int(n as i64))),
            b'M' => self.number::<2>().and_then(|n| self.push(Value::Int(n as i64))),
            b'J' => self.number::<4>().and_then(|n| self.push(Value::Int(i64::from(n as u32 as i32)))),
            0x8a => {
                let len = self.take(1)?[0] as usize;
                let bytes = self.take(len)?;
                if len > 8 {
                    return Err("a number has more than 64 bits".into());
                }
                let fill = if bytes.last().is_some_and(|b| b & 0x80 != 0) { 0xff } else { 0 };
                let mut le = [fill; 8];
                le[..len].copy_from_slice(bytes);
                self.push(Value::Int(i64::from_le_bytes(le)))
            }
            b'X' => self.number::<4>().and_then(|n| self.text(n)),
            0x8c => self.number::<1>().and_then(|n| self.text(n)),
            b'}' => self.push(Value::Dict(Vec::new())),
            b']' => self.push(Value::List(Vec::new())),
            b')' => self.push(Value::Tuple(Vec::new())),
            b't' => self.pop_mark().and_then(|v| self.push(Value::Tuple(v))),
            0x85..=0x87 => self.pop_many(op as usize - 0x84).and_then(|v| self.push(Value::Tuple(v))),
            b'a' => {
                let item = self.pop()?;
                self.append(vec![item])
            }
            b'e' => self.pop_mark().and_then(|items| self.append(items)),
            b's' => self.pop_many(2).and_then(|items| self.set_items(items)),
            b'u' => self.pop_mark().and_then(|items| self.set_items(items)),
            b'q' => self.number::<1>().and_then(|n| self.remember(n)),
            b'r' => self.number::<4>().and_then(|n| self.remember(n)),
            0x94 => self.remember(self.memo.len() as u64), // MEMOIZE
            b'h' => self.number::<1>().and_then(|n| self.recall(n)),
            b'j' => self.number::<4>().and_then(|n| self.recall(n)),
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.push(Value::Known(Known::find(module, name)?))
            }
            0x93 => {
                let names = self.pop_many(2)?;
                let (Value::Text(module), Value::Text(name)) = (self.value(names[0]), self.value(names[1])) else {
                    return Err("a global's name is not a string".into());
                };
                let known = Known::find(module, name)?;
                self.push(Value::Known(known))
            }
            b'Q' => {
                let id = self.pop()?;
                let storage = self.persistent(id)?;
                self.push(storage)
            }
            b'R' => {
                let call = self.pop_many(2)?;
                let value = self.call(call[0], call[1])?;
                self.push(value)
            }
            // BUILD sets attributes; the only one that torch writes is a state dict's version table.
            b'b' => match self.pop().map(|_| self.stack.last().map(|&id| self.value(id)))? {
                Some(Value::Dict(_)) => Ok(()),
                _ => Err("it builds an object".into()),
            },
            b'i' | b'o' | 0x81 | 0x92 | b'P' => Err("it creates objects of classes".into()),
            0x82..=0x84 => Err("it uses the extension registry".into()),
            other => Err(format!("it uses instruction 0x{other:02x}")),
        }
    }

    fn append(&mut self, items: Vec<Id>) -> Result<(), String> {
        match self.stack.last().map(|&id| &mut self.values[id as usize]) {
            Some(Value::List(list)) => {
                list.extend(items);
                Ok(())
            }
            _ => Err("it appends to something that is no list".into()),
        }
    }

    fn remember(&mut self, slot: u64) -> Result<(), String> {
        let id = *self.stack.last().ok_or("its stack runs empty")?;
        self.memo.insert(slot as u32, id);
        Ok(())
    }

    fn recall(&mut self, slot: u64) -> Result<(), String> {
        let id = *self.memo.get(&(slot as u32)).ok_or("it recalls what was never stored")?;
        if self.stack.len() >= MAX_VALUES {
            return Err("its stack grows without bound".into());
        }
        self.stack.push(id);
        Ok(())
    }

    /// `("storage", type, key, device, length)`
    fn persistent(&self, id: Id) -> Result<Value, String> {
        let [tag, kind, key, ..] = *self.tuple(id)? else {
            return Err("a persistent id has too few parts".into());
        };
        match (self.value(tag), self.value(kind), self.value(key)) {
            (Value::Text(tag), Value::Known(Known::Storage(dtype)), Value::Text(key)) if &**tag == "storage" => {
                Ok(Value::Storage(key.clone(), *dtype))
            }
            _ => Err("a persistent id is not a tensor's storage".into()),
        }
    }

    fn call(&self, function: Id, arguments: Id) -> Result<Value, String> {
        let arguments = self.tuple(arguments)?;
        match (self.value(function), arguments) {
            (Value::Known(Known::OrderedDict), []) => Ok(Value::Dict(Vec::new())),
            (Value::Known(Known::RebuildTensor), [storage, offset, shape, stride, ..]) => {
                let Value::Storage(key, dtype) = self.value(*storage) else {
                    return Err("a tensor has no storage".into());
                };
                let (shape, stride) = (self.sizes(*shape)?, self.sizes(*stride)?);
                if shape.len() != stride.len() {
                    return Err("a tensor's shape and stride differ in length".into());
                }
                Ok(Value::Tensor(Described {
                    storage: key.clone(),
                    dtype: *dtype,
                    offset: self.size(*offset)?,
                    shape,
                    stride,
                }))
            }
            (Value::Known(Known::RebuildParameter), [tensor, ..]) => match self.value(*tensor) {
                Value::Tensor(t) => Ok(Value::Tensor(t.clone())),
                other => Err(format!("a parameter is made of {}", other.kind())),
            },
            (other, _) => Err(format!("it calls {}", other.kind())),
        }
    }
}

impl Value {
    fn kind(&self) -> &'static str {
        match self {
            Value::Nothing => "a flag",
            Value::Int(_) => "a number",
            Value::Text(_) => "a string",
            Value::Known(_) => "a class or function",
            Value::Tuple(_) => "a tuple",
            Value::List(_) => "a list",
            Value::Dict(_) => "a dictionary",
            Value::Storage(..) => "a storage",
            Value::Tensor(_) => "a tensor",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `torch.save({"w": tensor})` pickles, with the shape and stride given.
    fn state_dict(shape: &[u8], stride: &[u8]) -> Vec<u8> {
        let mut p = b"\x80\x02}q\x00X\x01\x00\x00\x00wq\x01ctorch._utils\n_rebuild_tensor_v2\nq\x02((".to_vec();
        p.extend(b"X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x06tQK\x00(");
        shape.iter().for_each(|d| p.extend([b'K', *d]));
        p.extend(b"t(");
        stride.iter().for_each(|d| p.extend([b'K', *d]));
        p.extend(b"t\x89ccollections\nOrderedDict\n)RtRs.");
        p
    }

    #[test]
    fn a_state_dict_is_described() {
        let tensors = Machine::new(&state_dict(&[2, 3], &[3, 1])).run().unwrap();
        let t = Described { storage: "0".into(), dtype: Dtype::F32, offset: 0, shape: vec![2, 3], stride: vec![3, 1] };
        assert_eq!(tensors, [("w".into(), t)]);
    }

    #[test]
    fn strided_views_are_gathered_and_bounded() {
        let storage: Vec<u8> = (0..6).flat_map(|i| (i as f32).to_le_bytes()).collect();
        let of = |shape: &[u8], stride: &[u8]| {
            let tensors = Machine::new(&state_dict(shape, stride)).run().unwrap();
            tensors[0].1.locate(&storage)
        };
        assert!(matches!(of(&[2, 3], &[3, 1]), Ok(Located::Run(r)) if r == (0..24)));
        let Ok(Located::Gathered(bytes)) = of(&[3, 2], &[1, 3]) else { panic!() };
        let numbers: Vec<f32> = bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        assert_eq!(numbers, [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
        assert!(of(&[7], &[1]).is_err());
        assert!(of(&[200, 200], &[0, 0]).is_err());
        assert!(matches!(of(&[0, 9], &[9, 1]), Ok(Located::Run(r)) if r.is_empty()));
    }

    #[test]
    fn code_is_refused_by_name() {
        for (pickle, word) in [
            (&b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85R."[..], "'os.system'"),
            (b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93.", "'builtins.eval'"),
            (b"\x80\x02ctorch\nload\n.", "'torch.load'"),
            (b"\x80\x02ccollections\nOrderedDict\nK\x01\x85R.", "it calls"),
            (b"\x80\x02ccollections\nOrderedDict\n)\x81.", "creates objects"),
            (b"\x80\x02}.", ""),
            (b"\x80\x02}X\x01\x00\x00\x00wK\x05s.", "a number, not a tensor"),
            (b"\x80\x02R", "runs empty"),
            (b"\x80\x02u", "mark"),
            (b"\x80\x02h\x05", "never stored"),
            (b"\x80\x02X\xff\xff\xff\xffa", "truncated"),
        ] {
            match Machine::new(pickle).run() {
                Ok(tensors) => assert!(word.is_empty() && tensors.is_empty()),
                Err(e) => assert!(!word.is_empty() && e.contains(word), "{word}: {e}"),
            }
        }
    }

    #[test]
    fn nesting_and_cycles_are_harmless() {
        let mut deep = b"\x80\x02)".to_vec();
        deep.extend(std::iter::repeat_n(0x85, 1_000_000));
        deep.push(b'.');
        assert!(Machine::new(&deep).run().is_err());
        // d = {}; d["d"] = d
        assert!(Machine::new(b"\x80\x02}q\x00X\x01\x00\x00\x00dh\x00s.").run().is_err());
        // A stack that grows by recalling.
        let mut grow = b"\x80\x02Nq\x00".to_vec();
        grow.extend(b"h\x00".repeat(3_000_000));
        assert!(Machine::new(&grow).run().unwrap_err().contains("bound"));
    }
}
