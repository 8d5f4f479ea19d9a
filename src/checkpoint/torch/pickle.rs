//! A pickle as data: the stack machine of Python's `pickle` module, reduced to what dicts of tensors are written with.
//!
//! A pickle is a program. The one in a PyTorch file pushes strings, numbers and tuples, builds dicts of them, and calls
//! a handful of functions that make tensors. Here those functions are known by name and make descriptions of tensors;
//! nothing is run, imported or looked up, and any other name is an error.
//!
//! Work and memory are in proportion to the number of opcodes, which has a limit: each pushes at most one value of fixed
//! size, values are moved and not copied deeply, and strings stay in the file. Nothing here recurses.

use super::{
    TorchError,
    value::{Callable, Described, Storage, Value},
};
use crate::checkpoint::error::shorten;
use std::collections::HashMap;

/// The most opcodes that are followed. A tensor takes some forty.
pub(super) const OPCODE_LIMIT: usize = 1 << 21;

/// The longest name of a part of the archive, in bytes; real ones are numbers.
const KEY_LIMIT: usize = 255;

/// What a pickle builds.
#[derive(Default)]
pub(super) struct Pickle<'a> {
    items: Vec<Value<'a>>,
    dicts: Vec<Vec<(Value<'a>, Value<'a>)>>,
    storages: Vec<Storage<'a>>,
    tensors: Vec<Described<'a>>,
}

impl<'a> Pickle<'a> {
    /// Follows the opcodes; gives what was built, and the value that is the result.
    pub(super) fn parse(bytes: &'a [u8]) -> Result<(Self, Value<'a>), TorchError> {
        let mut machine = Machine {
            bytes,
            at: 0,
            opcode_at: 0,
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
            built: Self::default(),
        };
        for _ in 0..OPCODE_LIMIT {
            if let Some(result) = machine.step()? {
                return Ok((machine.built, result));
            }
        }
        Err(TorchError::TooLong { limit: OPCODE_LIMIT })
    }

    /// What a tuple holds; nothing if it is none.
    pub(super) fn tuple(&self, value: Value<'a>) -> Option<&[Value<'a>]> {
        let Value::Tuple { start, len } = value else { return None };
        self.items.get(start as usize..)?.get(..len as usize)
    }

    /// The pairs of a dict in the order they were set; nothing if it is none.
    pub(super) fn dict(&self, value: Value<'a>) -> Option<&[(Value<'a>, Value<'a>)]> {
        let Value::Dict(number) = value else { return None };
        self.dicts.get(number as usize).map(Vec::as_slice)
    }

    pub(super) fn tensor(&self, value: Value<'a>) -> Option<&Described<'a>> {
        let Value::Tensor(number) = value else { return None };
        self.tensors.get(number as usize)
    }
}

struct Machine<'a> {
    bytes: &'a [u8],
    /// The next byte.
    at: usize,
    /// The opcode that is being followed.
    opcode_at: usize,
    stack: Vec<Value<'a>>,
    /// Heights of the stack at which a mark lies.
    marks: Vec<usize>,
    memo: HashMap<u32, Value<'a>>,
    built: Pickle<'a>,
}

impl<'a> Machine<'a> {
    fn malformed(&self, problem: &'static str) -> TorchError {
        TorchError::Malformed { at: self.opcode_at, problem }
    }

    /// Follows one opcode; gives the result after the last.
    fn step(&mut self) -> Result<Option<Value<'a>>, TorchError> {
        self.opcode_at = self.at;
        let [opcode] = self.array()?;
        match opcode {
            // PROTO
            0x80 => {
                let [version] = self.array()?;
                if !(2..=5).contains(&version) {
                    return Err(self.malformed("the pickle protocol is not one of 2 to 5"));
                }
            }
            // FRAME: how the rest may be cut into reads.
            0x95 => {
                self.array::<8>()?;
            }
            b'.' => return self.stop().map(Some),
            b'(' => self.marks.push(self.stack.len()),
            b'N' => self.stack.push(Value::None),
            // NEWTRUE, NEWFALSE
            0x88 | 0x89 => self.stack.push(Value::Bool),
            b'J' | b'K' | b'M' | 0x8a => self.int(opcode)?,
            b'G' => {
                self.array::<8>()?;
                self.stack.push(Value::Other);
            }
            // BINUNICODE, SHORT_BINUNICODE, BINUNICODE8
            b'X' | 0x8c | 0x8d => {
                let bytes = self.counted(opcode)?;
                let text = std::str::from_utf8(bytes).map_err(|_| self.malformed("a string is not UTF-8"))?;
                self.stack.push(Value::Str(text));
            }
            // SHORT_BINBYTES, BINBYTES, BINBYTES8
            b'C' | b'B' | 0x8e => {
                self.counted(opcode)?;
                self.stack.push(Value::Other);
            }
            b']' => self.stack.push(Value::List),
            // APPEND, APPENDS
            b'a' | b'e' => {
                let start = if opcode == b'a' { self.top(1)? } else { self.pop_mark()? };
                self.stack.truncate(start);
                let Value::List = self.peek()? else {
                    return Err(self.malformed("values are appended to what is no list"));
                };
            }
            b')' => self.tuple(self.stack.len())?,
            b't' => {
                let start = self.pop_mark()?;
                self.tuple(start)?;
            }
            // TUPLE1, TUPLE2, TUPLE3
            0x85..=0x87 => self.tuple(self.top(usize::from(opcode - 0x84))?)?,
            b'}' => self.new_dict(),
            // SETITEM, SETITEMS
            b's' | b'u' => {
                let start = if opcode == b's' { self.top(2)? } else { self.pop_mark()? };
                self.set_items(start)?;
            }
            // BINGET, LONG_BINGET
            b'h' | b'j' => {
                let index = self.index(opcode == b'j')?;
                let value = *self.memo.get(&index).ok_or_else(|| self.malformed("nothing was stored here"))?;
                self.stack.push(value);
            }
            // BINPUT, LONG_BINPUT, MEMOIZE
            b'q' | b'r' | 0x94 => {
                // There are fewer opcodes than indices.
                let index = if opcode == 0x94 { self.memo.len() as u32 } else { self.index(opcode == b'r')? };
                let value = self.peek()?;
                self.memo.insert(index, value);
            }
            // GLOBAL
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.callable(module, name)?;
            }
            // STACK_GLOBAL
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let (Value::Str(module), Value::Str(name)) = (module, name) else {
                    return Err(self.malformed("a name is no string"));
                };
                self.callable(module, name)?;
            }
            b'R' => self.reduce()?,
            // BUILD: attributes of a dict, such as the version numbers of modules.
            b'b' => match (self.pop()?, self.peek()?) {
                (Value::Dict(_), Value::Dict(_)) => {}
                _ => return Err(self.malformed("attributes are set on what is no dict")),
            },
            // BINPERSID
            b'Q' => self.storage()?,
            _ => return Err(TorchError::Opcode { at: self.opcode_at, opcode }),
        }
        Ok(None)
    }

    fn stop(&mut self) -> Result<Value<'a>, TorchError> {
        let result = self.pop()?;
        if !self.stack.is_empty() || !self.marks.is_empty() {
            return Err(self.malformed("it ends with values left over"));
        }
        if self.at != self.bytes.len() {
            return Err(self.malformed("it ends before the end of data.pkl"));
        }
        Ok(result)
    }

    /// The next `count` bytes.
    fn take(&mut self, count: usize) -> Result<&'a [u8], TorchError> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let bytes = rest.get(..count).ok_or_else(|| self.malformed("data.pkl ends in the middle of it"))?;
        self.at += count;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], TorchError> {
        let problem = "data.pkl ends in the middle of it";
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let array = *rest.first_chunk().ok_or_else(|| self.malformed(problem))?;
        self.at += N;
        Ok(array)
    }

    /// An index into the memo, of one byte or four.
    fn index(&mut self, long: bool) -> Result<u32, TorchError> {
        Ok(if long { u32::from_le_bytes(self.array()?) } else { u32::from(self.array::<1>()?[0]) })
    }

    /// Bytes with their count in front.
    fn counted(&mut self, opcode: u8) -> Result<&'a [u8], TorchError> {
        let count = match opcode {
            0x8c | b'C' => u64::from(self.array::<1>()?[0]),
            0x8d | 0x8e => u64::from_le_bytes(self.array()?),
            _ => u64::from(u32::from_le_bytes(self.array()?)),
        };
        // A count that does not fit is beyond the end as well.
        self.take(usize::try_from(count).unwrap_or(usize::MAX))
    }

    /// Text up to the end of the line.
    fn line(&mut self) -> Result<&'a str, TorchError> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let end = rest.iter().position(|&byte| byte == b'\n');
        let line = self.take(end.unwrap_or(rest.len()))?;
        self.take(1)?;
        std::str::from_utf8(line).map_err(|_| self.malformed("a name is not UTF-8"))
    }

    /// BININT, BININT1, BININT2, LONG1.
    fn int(&mut self, opcode: u8) -> Result<(), TorchError> {
        let int = match opcode {
            b'K' => i64::from(self.array::<1>()?[0]),
            b'M' => i64::from(u16::from_le_bytes(self.array()?)),
            b'J' => i64::from(i32::from_le_bytes(self.array()?)),
            _ => {
                let [count] = self.array()?;
                let bytes = self.take(usize::from(count))?;
                // Two's complement of any length.
                let sign = if bytes.last().is_some_and(|&byte| byte >= 0x80) { 0xff } else { 0 };
                let mut int = [sign; 8];
                let Some(low) = int.get_mut(..bytes.len()) else {
                    self.stack.push(Value::Other);
                    return Ok(());
                };
                low.copy_from_slice(bytes);
                i64::from_le_bytes(int)
            }
        };
        self.stack.push(Value::Int(int));
        Ok(())
    }

    /// Where the values begin that lie above the last mark.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    /// Where the top `count` values begin, all above the last mark.
    fn top(&self, count: usize) -> Result<usize, TorchError> {
        let start = self.stack.len().checked_sub(count).filter(|&start| start >= self.floor());
        start.ok_or_else(|| self.malformed("it needs more values than there are"))
    }

    fn pop(&mut self) -> Result<Value<'a>, TorchError> {
        let start = self.top(1)?;
        let value = self.stack[start];
        self.stack.truncate(start);
        Ok(value)
    }

    fn peek(&self) -> Result<Value<'a>, TorchError> {
        Ok(self.stack[self.top(1)?])
    }

    fn pop_mark(&mut self) -> Result<usize, TorchError> {
        self.marks.pop().ok_or_else(|| self.malformed("there is no mark"))
    }

    /// The values from `start` on become a tuple.
    fn tuple(&mut self, start: usize) -> Result<(), TorchError> {
        // There are fewer values than opcodes, and fewer opcodes than 2^32.
        let tuple = Value::Tuple { start: self.built.items.len() as u32, len: (self.stack.len() - start) as u32 };
        self.built.items.extend(self.stack.drain(start..));
        self.stack.push(tuple);
        Ok(())
    }

    fn new_dict(&mut self) {
        self.stack.push(Value::Dict(self.built.dicts.len() as u32));
        self.built.dicts.push(Vec::new());
    }

    /// The values from `start` on are keys and values of the dict below them.
    fn set_items(&mut self, start: usize) -> Result<(), TorchError> {
        let (pairs, []) = self.stack[start..].as_chunks::<2>() else {
            return Err(self.malformed("a key has no value"));
        };
        let dict = match start.checked_sub(1).filter(|&below| below >= self.floor()).map(|below| self.stack[below]) {
            Some(Value::Dict(number)) => self.built.dicts.get_mut(number as usize),
            _ => None,
        };
        let Some(dict) = dict else {
            return Err(self.malformed("items are set on what is no dict"));
        };
        dict.extend(pairs.iter().map(|&[key, value]| (key, value)));
        self.stack.truncate(start);
        Ok(())
    }

    fn callable(&mut self, module: &str, name: &str) -> Result<(), TorchError> {
        let found = Callable::find(module, name);
        let asked = || TorchError::Callable { name: shorten(&format!("{}.{}", shorten(module), shorten(name))) };
        self.stack.push(Value::Callable(found.ok_or_else(asked)?));
        Ok(())
    }

    /// Stands in for a call.
    fn reduce(&mut self) -> Result<(), TorchError> {
        let (arguments, callable) = (self.pop()?, self.pop()?);
        let Value::Callable(callable) = callable else {
            return Err(self.malformed("what is called is no function"));
        };
        let Some(arguments) = self.built.tuple(arguments) else {
            return Err(self.malformed("the arguments of a call are no tuple"));
        };
        match (callable, arguments) {
            (Callable::OrderedDict, []) => self.new_dict(),
            // Storage, offset, shape, strides, whether it needs a gradient, hooks, and sometimes more about it.
            (
                Callable::RebuildTensor,
                &[Value::Storage(storage), Value::Int(offset), shape, strides, Value::Bool, _]
                | &[Value::Storage(storage), Value::Int(offset), shape, strides, Value::Bool, _, _],
            ) => {
                let storage = self.built.storages[storage as usize];
                self.stack.push(Value::Tensor(self.built.tensors.len() as u32));
                self.built.tensors.push(Described { storage, offset, shape, strides });
            }
            // The tensor, whether it needs a gradient, hooks, and attributes.
            (Callable::RebuildParameter, &[tensor @ Value::Tensor(_), Value::Bool, _])
            | (Callable::RebuildParameterWithState, &[tensor @ Value::Tensor(_), Value::Bool, _, _]) => {
                self.stack.push(tensor);
            }
            _ => return Err(self.malformed("a function gets other arguments than PyTorch gives it")),
        }
        Ok(())
    }

    /// A reference to a part of the archive: `('storage', class, key, device, number of values)`.
    fn storage(&mut self) -> Result<(), TorchError> {
        let reference = self.pop()?;
        let storage = match self.built.tuple(reference) {
            Some(
                &[
                    Value::Str("storage"),
                    Value::Callable(Callable::Storage(dtype)),
                    Value::Str(key),
                    Value::Str(_),
                    Value::Int(values),
                ],
            ) if key.len() <= KEY_LIMIT => Storage { dtype, key, values },
            _ => return Err(self.malformed("it refers to something else than a storage")),
        };
        self.stack.push(Value::Storage(self.built.storages.len() as u32));
        self.built.storages.push(storage);
        Ok(())
    }
}
