//! Reads `.npy` arrays: rows of logits as numpy saves them.
//!
//! The format is a magic string, a version, the length of a header, the header (a Python dictionary literal that names
//! the element type, the memory order and the shape) and the elements. Versions 1 to 3 are read, in C order, with
//! little-endian float32 or float16 elements and one or two dimensions. Nothing in the file is believed before it was
//! checked, and memory grows only with bytes that were really there.
//!
//! Format: numpy, `numpy.lib.format`.

mod header;

use std::io::{self, Read};

use half::f16;

use header::Header;

const MAGIC: &[u8; 6] = b"\x93NUMPY";
/// numpy writes headers below 200 bytes for such arrays; it refuses to parse ones above 10,000 itself.
const MAX_HEADER_BYTES: usize = 10_000;

/// A matrix of logits, row-major and contiguous.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Array {
    /// Number of rows, at least 1; a one-dimensional array is one row.
    pub(crate) rows: usize,
    /// Width of a row, at least 1.
    pub(crate) columns: usize,
    /// `rows × columns` elements.
    pub(crate) values: Values,
}

/// Elements in the type in which the file holds them.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Values {
    /// `<f4`.
    F32(Vec<f32>),
    /// `<f2`.
    F16(Vec<f16>),
}

/// Why an array was refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NpyError {
    #[error("cannot be read")]
    Read(#[from] io::Error),
    #[error("is not a .npy file: it does not begin with \\x93NUMPY")]
    Magic,
    #[error("has .npy version {major}.{minor}; 1.0, 2.0 and 3.0 are supported")]
    Version { major: u8, minor: u8 },
    #[error("ends within its header")]
    TruncatedHeader,
    #[error("has a header of {bytes} bytes; at most {MAX_HEADER_BYTES} are read")]
    LongHeader { bytes: usize },
    #[error("has a malformed header: {0}")]
    Header(&'static str),
    #[error(
        "has elements of type {0:?}; save it as little-endian float32 (\"<f4\") or float16 (\"<f2\")"
    )]
    ElementType(String),
    #[error("is in Fortran order; save numpy.ascontiguousarray(array)")]
    FortranOrder,
    #[error("has shape {0:?}; expected [vocab] or [rows, vocab], nowhere 0")]
    Shape(Vec<u64>),
    #[error("has {actual} bytes of elements; its shape {shape:?} needs {expected}")]
    Size {
        shape: Vec<u64>,
        expected: u64,
        actual: u64,
    },
}

/// Reads one array to the end of `reader`, which must end with it.
pub(crate) fn read(mut reader: impl Read) -> Result<Array, NpyError> {
    let header = Header::parse(&read_header(&mut reader)?)?;
    let element = ElementType::parse(&header.descr)?;
    if header.fortran_order {
        return Err(NpyError::FortranOrder);
    }
    let (rows, columns) = matrix(&header.shape)?;
    let expected =
        byte_count(rows, columns, element).ok_or_else(|| NpyError::Shape(header.shape.clone()))?;
    let bytes = read_elements(reader, expected, header.shape)?;
    Ok(Array {
        rows,
        columns,
        values: element.decode(&bytes),
    })
}

/// The elements' bytes. One byte more than expected is asked for, so that a longer file is noticed, not read.
fn read_elements(reader: impl Read, expected: u64, shape: Vec<u64>) -> Result<Vec<u8>, NpyError> {
    let mut bytes = Vec::new();
    reader
        .take(expected.saturating_add(1))
        .read_to_end(&mut bytes)?;
    let actual = bytes.len() as u64;
    if actual != expected {
        return Err(NpyError::Size {
            shape,
            expected,
            actual,
        });
    }
    Ok(bytes)
}

fn read_header(reader: &mut impl Read) -> Result<String, NpyError> {
    let magic: [u8; 6] = read_bytes(reader).map_err(|error| match error {
        NpyError::TruncatedHeader => NpyError::Magic,
        other => other,
    })?;
    if &magic != MAGIC {
        return Err(NpyError::Magic);
    }
    let length = match read_bytes(reader)? {
        [1, 0] => usize::from(u16::from_le_bytes(read_bytes(reader)?)),
        [2 | 3, 0] => u32::from_le_bytes(read_bytes(reader)?) as usize,
        [major, minor] => return Err(NpyError::Version { major, minor }),
    };
    if length > MAX_HEADER_BYTES {
        return Err(NpyError::LongHeader { bytes: length });
    }
    let mut header = vec![0; length];
    reader.read_exact(&mut header).map_err(end_in_header)?;
    String::from_utf8(header).map_err(|_| NpyError::Header("it is not text"))
}

fn read_bytes<const N: usize>(reader: &mut impl Read) -> Result<[u8; N], NpyError> {
    let mut bytes = [0; N];
    reader.read_exact(&mut bytes).map_err(end_in_header)?;
    Ok(bytes)
}

fn end_in_header(error: io::Error) -> NpyError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => NpyError::TruncatedHeader,
        _ => NpyError::Read(error),
    }
}

#[derive(Debug, Clone, Copy)]
enum ElementType {
    F32,
    F16,
}

impl ElementType {
    fn parse(descr: &str) -> Result<Self, NpyError> {
        match descr {
            "<f4" => Ok(Self::F32),
            "<f2" => Ok(Self::F16),
            other => Err(NpyError::ElementType(other.to_owned())),
        }
    }

    fn bytes(self) -> u64 {
        match self {
            Self::F32 => 4,
            Self::F16 => 2,
        }
    }

    fn decode(self, bytes: &[u8]) -> Values {
        match self {
            Self::F32 => Values::F32(
                bytes
                    .as_chunks()
                    .0
                    .iter()
                    .map(|&element| f32::from_le_bytes(element))
                    .collect(),
            ),
            Self::F16 => Values::F16(
                bytes
                    .as_chunks()
                    .0
                    .iter()
                    .map(|&element| f16::from_le_bytes(element))
                    .collect(),
            ),
        }
    }
}

fn matrix(shape: &[u64]) -> Result<(usize, usize), NpyError> {
    let (rows, columns) = match *shape {
        [columns] => (1, columns),
        [rows, columns] => (rows, columns),
        _ => return Err(NpyError::Shape(shape.to_vec())),
    };
    match (usize::try_from(rows), usize::try_from(columns)) {
        (Ok(rows @ 1..), Ok(columns @ 1..)) => Ok((rows, columns)),
        _ => Err(NpyError::Shape(shape.to_vec())),
    }
}

/// `None` when the product does not fit.
fn byte_count(rows: usize, columns: usize, element: ElementType) -> Option<u64> {
    let elements = rows.checked_mul(columns)?;
    u64::try_from(elements).ok()?.checked_mul(element.bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of version 1.0 as numpy lays it out.
    fn file(header: &str, elements: &[u8]) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend([1, 0]);
        bytes.extend(u16::try_from(header.len()).unwrap().to_le_bytes());
        bytes.extend(header.as_bytes());
        bytes.extend(elements);
        bytes
    }

    fn f32_bytes(values: &[f32]) -> Vec<u8> {
        values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect()
    }

    fn refusal(header: &str, elements: &[u8]) -> String {
        read(&file(header, elements)[..]).unwrap_err().to_string()
    }

    #[test]
    fn two_rows_of_float32() {
        let header = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }          \n";
        let array = read(
            &file(
                header,
                &f32_bytes(&[0.0, 1.0, 2.0, -1.5, f32::NEG_INFINITY, 4.0]),
            )[..],
        )
        .unwrap();
        assert_eq!((array.rows, array.columns), (2, 3));
        assert_eq!(
            array.values,
            Values::F32(vec![0.0, 1.0, 2.0, -1.5, f32::NEG_INFINITY, 4.0])
        );
    }

    #[test]
    fn one_dimension_is_one_row_and_float16_stays_float16() {
        let elements: Vec<u8> = [1.0, -2.5]
            .into_iter()
            .flat_map(|v| f16::from_f32(v).to_le_bytes())
            .collect();
        let array = read(
            &file(
                "{'descr':'<f2','fortran_order':False,'shape':(2,)}",
                &elements,
            )[..],
        )
        .unwrap();
        assert_eq!((array.rows, array.columns), (1, 2));
        assert_eq!(
            array.values,
            Values::F16(vec![f16::from_f32(1.0), f16::from_f32(-2.5)])
        );
    }

    #[test]
    fn versions_2_and_3_have_a_wider_header_length() {
        for major in [2, 3] {
            let header = "{\"shape\": (1,), \"fortran_order\": False, \"descr\": \"<f4\"}";
            let mut bytes = MAGIC.to_vec();
            bytes.extend([major, 0]);
            bytes.extend(u32::try_from(header.len()).unwrap().to_le_bytes());
            bytes.extend(header.as_bytes());
            bytes.extend(f32_bytes(&[7.0]));
            assert_eq!(read(&bytes[..]).unwrap().values, Values::F32(vec![7.0]));
        }
    }

    #[test]
    fn every_prefix_of_a_file_is_refused() {
        let whole = file(
            "{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }\n",
            &f32_bytes(&[1.0, 2.0]),
        );
        assert!(read(&whole[..]).is_ok());
        for length in 0..whole.len() {
            assert!(
                read(&whole[..length]).is_err(),
                "{length} of {} bytes",
                whole.len()
            );
        }
    }

    #[test]
    fn foreign_files_and_types_are_named() {
        assert!(
            read(&b"PK\x03\x04zip archive"[..])
                .unwrap_err()
                .to_string()
                .contains("not a .npy file")
        );
        let f64_array = refusal(
            "{'descr': '<f8', 'fortran_order': False, 'shape': (1,)}",
            &[0; 8],
        );
        assert!(
            f64_array.contains("\"<f8\"") && f64_array.contains("float32"),
            "{f64_array}"
        );
        assert!(
            refusal(
                "{'descr': '>f4', 'fortran_order': False, 'shape': (1,)}",
                &[0; 4]
            )
            .contains("\">f4\"")
        );
        assert!(
            refusal(
                "{'descr': '<f4', 'fortran_order': True, 'shape': (1,)}",
                &[0; 4]
            )
            .contains("ascontiguousarray")
        );
        let mut version_9 = file("", &[]);
        version_9[6] = 9;
        assert!(
            read(&version_9[..])
                .unwrap_err()
                .to_string()
                .contains("9.0")
        );
    }

    #[test]
    fn sizes_that_lie_are_refused_without_being_allocated() {
        let huge = "{'descr': '<f4', 'fortran_order': False, 'shape': (4294967296, 4294967296)}";
        assert!(refusal(huge, &[]).contains("shape"));
        let large = "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000, 1000000)}";
        assert!(refusal(large, &[0; 4]).contains("needs 4000000000000"));
        let trailing = "{'descr': '<f4', 'fortran_order': False, 'shape': (1,)}";
        assert!(refusal(trailing, &[0; 5]).contains("has 5 bytes"));
        for shape in ["()", "(0,)", "(2, 0)", "(1, 2, 3)"] {
            let header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}");
            assert!(
                refusal(&header, &[]).contains("expected [vocab] or [rows, vocab]"),
                "{shape}"
            );
        }
    }

    #[test]
    fn headers_that_are_not_the_dictionary_are_refused() {
        for header in [
            "",
            "{",
            "{}",
            "{'descr': '<f4'}",
            "{'descr': '<f4', 'fortran_order': 0, 'shape': (1,)}",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (1)}",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (1,), 'more': 'x'}",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (1,)} x",
            "{'descr': '<f4\\'', 'fortran_order': False, 'shape': (1,)}",
            "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,)}",
        ] {
            assert!(
                refusal(header, &[0; 4]).contains("malformed header"),
                "{header}"
            );
        }
        let mut long = MAGIC.to_vec();
        long.extend([2, 0]);
        long.extend(u32::MAX.to_le_bytes());
        assert!(
            read(&long[..])
                .unwrap_err()
                .to_string()
                .contains("4294967295 bytes")
        );
    }
}
