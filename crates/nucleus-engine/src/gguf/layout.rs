//! Tensor descriptions, and the proof that each tensor has its own bytes in the file.

use std::io::Read;

use super::error::{GgufError, Malformed, Problem};
use super::header::NameIndex;
use super::reader::HeaderReader;
use super::tensor_type::TensorType;

/// A tensor in a model file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Its name, such as `blk.0.attn_q.weight`.
    pub name: String,
    /// Its dimensions, outermost first: `[rows, columns]` for a matrix.
    pub shape: Vec<usize>,
    /// How its elements are stored.
    pub kind: TensorType,
    /// Its size in bytes; `None` when the type's layout is not known.
    pub bytes: Option<u64>,
    /// Where it begins, in bytes from the beginning of the file.
    pub offset: u64,
}

impl TensorInfo {
    /// Number of elements.
    pub fn elements(&self) -> u64 {
        self.shape.iter().map(|&dim| dim as u64).product()
    }

    pub(super) fn known_bytes(&self) -> Result<u64, GgufError> {
        self.bytes.ok_or_else(|| self.unsupported())
    }

    pub(crate) fn unsupported(&self) -> GgufError {
        GgufError::UnsupportedType {
            tensor: self.name.clone(),
            kind: self.kind,
        }
    }
}

/// The tensors of a file, in the order of its list.
#[derive(Debug)]
pub(super) struct Tensors {
    infos: Vec<TensorInfo>,
    index: NameIndex,
}

/// A tensor as the header describes it.
pub(super) struct Described {
    info: TensorInfo,
    /// Where the description begins, for errors.
    at: u64,
}

/// Where tensors may be.
#[derive(Debug, Clone, Copy)]
pub(super) struct DataSection {
    /// Where it begins, in bytes from the beginning of the file.
    pub(super) start: u64,
    pub(super) alignment: u64,
    /// The size of the file.
    pub(super) file_size: u64,
}

const MAX_DIMENSIONS: u32 = 4;
/// ggml itself allows 64.
const MAX_NAME_BYTES: u64 = 1024;
/// The shortest description: a name's length, one character, a count, one dimension, a type and an offset.
const MIN_DESCRIPTION_BYTES: u64 = 8 + 1 + 4 + 8 + 4 + 8;

impl Tensors {
    pub(super) fn as_slice(&self) -> &[TensorInfo] {
        &self.infos
    }

    pub(super) fn get(&self, name: &str) -> Option<&TensorInfo> {
        let at = self.index.find(name, |at| &self.infos[at].name)?;
        Some(&self.infos[at])
    }

    /// Places the described tensors in the data section.
    pub(super) fn place(
        described: Vec<Described>,
        section: DataSection,
    ) -> Result<Self, Malformed> {
        let index = NameIndex::new(described.len(), |at| &described[at].info.name);
        if let Some(twice) = index.duplicate(|at| &described[at].info.name) {
            return Err(described[twice].problem(Problem::Duplicate));
        }
        let placed: Vec<Described> = described
            .into_iter()
            .map(|tensor| place_tensor(tensor, section))
            .collect::<Result<_, _>>()?;
        check_apart(&placed)?;
        Ok(Self {
            infos: placed.into_iter().map(|tensor| tensor.info).collect(),
            index,
        })
    }
}

impl Described {
    fn problem(&self, problem: Problem) -> Malformed {
        Malformed::at(self.at, problem).in_place(|| place_name(&self.info.name))
    }

    /// Where the tensor ends; for a type of unknown layout, its first byte.
    fn end(&self) -> u128 {
        u128::from(self.info.offset) + u128::from(self.info.bytes.unwrap_or(1))
    }
}

/// How errors name a tensor.
fn place_name(name: &str) -> String {
    format!("tensor {name:?}")
}

pub(super) fn parse<R: Read>(
    reader: &mut HeaderReader<R>,
    count: u64,
) -> Result<Vec<Described>, Malformed> {
    reader.expect("the list of tensors", count, MIN_DESCRIPTION_BYTES)?;
    (0..count)
        .map(|number| parse_tensor(reader, number))
        .collect()
}

/// A description; its offset is still relative to the data section.
fn parse_tensor<R: Read>(
    reader: &mut HeaderReader<R>,
    number: u64,
) -> Result<Described, Malformed> {
    let at = reader.position();
    let name = reader
        .name("a tensor's name", MAX_NAME_BYTES)
        .map_err(|error| error.in_place(|| format!("tensor {number}")))?;
    let named = |error: Malformed| error.in_place(|| place_name(&name));
    let dims = parse_dims(reader).map_err(named)?;
    let kind = TensorType::new(reader.u32("the tensor's type").map_err(named)?);
    let offset = reader.u64("the tensor's offset").map_err(named)?;
    let (shape, bytes) = size(kind, &dims).map_err(|problem| named(Malformed::at(at, problem)))?;
    Ok(Described {
        info: TensorInfo {
            name,
            shape,
            kind,
            bytes,
            offset,
        },
        at,
    })
}

/// Dimensions, innermost first.
fn parse_dims<R: Read>(reader: &mut HeaderReader<R>) -> Result<Vec<u64>, Malformed> {
    let offset = reader.position();
    let count = reader.u32("the number of dimensions")?;
    if !(1..=MAX_DIMENSIONS).contains(&count) {
        return Err(Malformed::at(offset, Problem::DimensionCount { count }));
    }
    (0..count as usize)
        .map(|index| {
            let offset = reader.position();
            match reader.u64("a dimension")? {
                0 => Err(Malformed::at(offset, Problem::ZeroDimension { index })),
                dim => Ok(dim),
            }
        })
        .collect()
}

/// The shape, outermost first, and the size in bytes where the type's layout is known.
fn size(kind: TensorType, dims: &[u64]) -> Result<(Vec<usize>, Option<u64>), Problem> {
    let too_large = || Problem::TooLarge {
        dims: dims.to_vec(),
    };
    let elements = dims
        .iter()
        .try_fold(1u64, |product, &dim| product.checked_mul(dim))
        .ok_or_else(too_large)?;
    let shape = dims
        .iter()
        .rev()
        .map(|&dim| usize::try_from(dim))
        .collect::<Result<_, _>>()
        .map_err(|_| too_large())?;
    let Some(layout) = kind.layout() else {
        return Ok((shape, None));
    };
    if !dims[0].is_multiple_of(layout.elements) {
        return Err(Problem::PartialBlock {
            row: dims[0],
            kind,
            block: layout.elements,
        });
    }
    let bytes = (elements / layout.elements)
        .checked_mul(layout.bytes)
        .ok_or_else(too_large)?;
    Ok((shape, Some(bytes)))
}

/// The tensor with its offset from the beginning of the file, inside of it.
fn place_tensor(mut tensor: Described, section: DataSection) -> Result<Described, Malformed> {
    let relative = tensor.info.offset;
    if !relative.is_multiple_of(section.alignment) {
        return Err(tensor.problem(Problem::Misaligned {
            offset: relative,
            alignment: section.alignment,
        }));
    }
    let end = u128::from(section.start) + tensor.end();
    if end > u128::from(section.file_size) {
        return Err(tensor.problem(Problem::PastEnd {
            end,
            size: section.file_size,
        }));
    }
    tensor.info.offset = section.start + relative;
    Ok(tensor)
}

/// Fails if two tensors share a byte. Their order is free, and gaps between them are allowed.
fn check_apart(tensors: &[Described]) -> Result<(), Malformed> {
    let mut order: Vec<&Described> = tensors.iter().collect();
    order.sort_by_key(|tensor| tensor.info.offset);
    for pair in order.windows(2) {
        if pair[0].end() > u128::from(pair[1].info.offset) {
            return Err(pair[1].problem(Problem::Overlap {
                other: pair[0].info.name.clone(),
            }));
        }
    }
    Ok(())
}
