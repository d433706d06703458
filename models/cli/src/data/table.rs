//! A table in memory, whatever file it comes from.

use serde_json::{Map, Value};

/// Records with a value for each name.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Table {
    /// Names of the columns.
    pub(crate) names: Vec<String>,
    /// Values of each record, in the order of the names.
    pub(crate) rows: Vec<Vec<Value>>,
}

/// Makes a table whose columns are the keys of all objects. A key that an object lacks is null.
pub(super) fn from_objects(objects: Vec<Map<String, Value>>) -> Table {
    let mut names: Vec<String> = Vec::new();
    for name in objects.iter().flat_map(Map::keys) {
        if !names.contains(name) {
            names.push(name.clone());
        }
    }
    let row =
        |mut object: Map<String, Value>| names.iter().map(|name| object.remove(name).unwrap_or_default()).collect();
    Table { rows: objects.into_iter().map(row).collect(), names }
}
