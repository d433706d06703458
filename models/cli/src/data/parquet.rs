//! Parquet tables.

use super::table::{Table, from_objects};
use anyhow::Context;
use bytes::Bytes;
use parquet::file::reader::{FileReader, SerializedFileReader};
use serde_json::{Map, Value};

/// Reads a table, each row as the JSON of its values. Its pages must be uncompressed, or compressed with Snappy.
pub(super) fn read(bytes: Vec<u8>) -> anyhow::Result<Table> {
    let reader =
        SerializedFileReader::new(Bytes::from(bytes)).context("it is not a whole Parquet table: download it again")?;
    let rows = reader.get_row_iter(None).context("reading the Parquet table")?;
    let mut objects: Vec<Map<String, Value>> = Vec::new();
    for row in rows {
        let row = row.context("reading a row of the Parquet table")?;
        if let Value::Object(object) = row.to_json_value() {
            objects.push(object);
        }
    }
    let mut table = from_objects(objects);
    let columns = reader.metadata().file_metadata().schema().get_fields().iter().map(|field| field.name().to_owned());
    let order: Vec<usize> = columns.filter_map(|name| table.names.iter().position(|known| *known == name)).collect();
    table.rows = table.rows.iter().map(|row| order.iter().map(|&at| row[at].clone()).collect()).collect();
    table.names = order.iter().map(|&at| table.names[at].clone()).collect();
    Ok(table)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failing test may panic")]
    use super::*;
    use parquet::basic::Compression;
    use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
    use parquet::file::properties::WriterProperties;
    use parquet::file::writer::SerializedFileWriter;
    use parquet::schema::parser::parse_message_type;
    use serde_json::json;
    use std::sync::Arc;

    #[test]
    fn rows_keep_their_values_and_the_order_of_the_columns() {
        let schema = "message texts { required binary text (UTF8); optional int64 label; }";
        let schema = Arc::new(parse_message_type(schema).unwrap());
        let settings = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
        let mut bytes = Vec::new();
        let mut writer = SerializedFileWriter::new(&mut bytes, schema, Arc::new(settings)).unwrap();
        let mut group = writer.next_row_group().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        let texts = ["good", "très bien"].map(ByteArray::from);
        column.typed::<ByteArrayType>().write_batch(&texts, None, None).unwrap();
        column.close().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<Int64Type>().write_batch(&[1], Some(&[1, 0]), None).unwrap();
        column.close().unwrap();
        group.close().unwrap();
        writer.close().unwrap();
        let table = read(bytes.clone()).unwrap();
        assert_eq!(table.names, ["text", "label"]);
        assert_eq!(table.rows, [vec![json!("good"), json!(1)], vec![json!("très bien"), json!(null)]]);
        bytes.truncate(bytes.len() / 2);
        assert!(read(bytes).unwrap_err().to_string().contains("not a whole Parquet table"));
    }
}
