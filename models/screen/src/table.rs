//! Tables that fit the terminal: columns that matter less are left out of a narrow one.

use crate::text::fold;
use comfy_table::{CellAlignment, ColumnConstraint, ContentArrangement, Width, presets};

/// Blanks between two columns.
const GAP: usize = 2;
/// Rank of a column that is always shown.
const ALWAYS: u8 = 0;

/// A column of a table.
#[derive(Clone, Debug)]
pub struct Column {
    title: String,
    alignment: CellAlignment,
    rank: u8,
    width: usize,
}

impl Column {
    /// Returns a column of texts, which is always shown.
    #[must_use]
    pub fn text(title: &str) -> Self {
        Self { title: title.to_owned(), alignment: CellAlignment::Left, rank: ALWAYS, width: title.chars().count() }
    }

    /// Returns a column of numbers, aligned to the right, which is always shown.
    #[must_use]
    pub fn number(title: &str) -> Self {
        Self { alignment: CellAlignment::Right, ..Self::text(title) }
    }

    /// Returns the column with a rank. If the terminal is too narrow, the column with the highest rank is left out first.
    #[must_use]
    pub fn rank(self, rank: u8) -> Self {
        Self { rank, ..self }
    }

    /// Returns the column with room for values of this width, in a table whose rows come one by one.
    #[must_use]
    pub fn room(self, width: usize) -> Self {
        Self { width: width.max(self.width), ..self }
    }
}

/// A table whose rows are all known.
#[derive(Clone, Debug)]
pub struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// Returns a table without rows.
    #[must_use]
    pub fn new(columns: impl IntoIterator<Item = Column>) -> Self {
        Self { columns: columns.into_iter().collect(), rows: Vec::new() }
    }

    /// Adds a row with a cell for each column.
    pub fn add(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// Returns the table, fitted to `width` columns of a terminal; whole if there is no width. A last line names the columns
    /// that are left out.
    #[must_use]
    pub fn text(&self, width: Option<usize>) -> String {
        let mut columns = self.columns.clone();
        for (at, column) in columns.iter_mut().enumerate() {
            let cells = self.rows.iter().filter_map(|row| row.get(at));
            column.width = cells.map(|cell| textwrap::core::display_width(cell)).fold(column.width, usize::max);
        }
        let shown = fitting(&columns, width);
        let titles = columns.iter().map(|column| column.title.clone()).collect();
        let rows: Vec<&Vec<String>> = std::iter::once(&titles).chain(&self.rows).collect();
        let mut text = laid_out(&columns, &shown, &rows, width);
        let hidden: Vec<&str> =
            (0..columns.len()).filter(|at| !shown.contains(at)).map(|at| columns[at].title.as_str()).collect();
        if !hidden.is_empty() {
            let note = format!("(no room for {}: widen the terminal or use --json)", hidden.join(", "));
            text += &(fold(&note, 1, width) + "\n");
        }
        text
    }
}

/// A table whose rows come one by one, so that the columns' widths are set from the start.
#[derive(Clone, Debug)]
pub struct Running {
    columns: Vec<Column>,
    shown: Vec<usize>,
    width: Option<usize>,
}

impl Running {
    /// Returns a table with the columns that fit `width`.
    #[must_use]
    pub fn new(columns: impl IntoIterator<Item = Column>, width: Option<usize>) -> Self {
        let columns: Vec<Column> = columns.into_iter().collect();
        let shown = fitting(&columns, width);
        Self { columns, shown, width }
    }

    /// Returns the line of titles.
    #[must_use]
    pub fn heading(&self) -> String {
        self.row(self.columns.iter().map(|column| column.title.clone()))
    }

    /// Returns the line of a row with a cell for each column.
    #[must_use]
    pub fn row(&self, cells: impl IntoIterator<Item = String>) -> String {
        laid_out(&self.columns, &self.shown, &[&cells.into_iter().collect()], self.width)
    }

    /// Returns a row that has a text instead of the cells after the first one.
    #[must_use]
    pub fn remark(&self, first: &str, text: &str) -> String {
        let room = self.columns.first().map_or(0, |column| column.width);
        let indent = room + GAP;
        fold(&format!("{first:>room$}{}{text}", " ".repeat(GAP)), indent, self.width) + "\n"
    }
}

/// Returns the positions of the columns that fit. Columns of a higher rank are left out first.
fn fitting(columns: &[Column], width: Option<usize>) -> Vec<usize> {
    let mut shown: Vec<usize> = (0..columns.len()).collect();
    let Some(width) = width else { return shown };
    let total = |shown: &[usize]| shown.iter().map(|&at| columns[at].width + GAP).sum::<usize>().saturating_sub(GAP);
    while total(&shown) > width {
        let least = shown.iter().copied().filter(|&at| columns[at].rank > ALWAYS).max_by_key(|&at| columns[at].rank);
        let Some(least) = least else { break };
        shown.retain(|&at| at != least);
    }
    shown
}

fn laid_out(columns: &[Column], shown: &[usize], rows: &[&Vec<String>], width: Option<usize>) -> String {
    let mut table = comfy_table::Table::new();
    table.load_style(presets::NOTHING);
    for row in rows {
        table.add_row(shown.iter().map(|&at| row.get(at).map_or("", String::as_str)));
    }
    let fits = width.is_none_or(|width| {
        shown.iter().map(|&at| columns[at].width + GAP).sum::<usize>() <= width.saturating_add(GAP)
    });
    for (column, &at) in table.column_iter_mut().zip(shown) {
        column.set_padding((0, GAP as u16)).set_cell_alignment(columns[at].alignment);
        if fits {
            column.set_constraint(ColumnConstraint::Absolute(Width::Fixed((columns[at].width + GAP) as u16)));
        }
    }
    if let (false, Some(width)) = (fits, width) {
        table.set_content_arrangement(ContentArrangement::Dynamic).set_width((width + GAP) as u16);
    }
    table.trim_fmt() + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fleet() -> Table {
        let mut table = Table::new([
            Column::text("device"),
            Column::text("state").rank(1),
            Column::number("step").rank(3),
            Column::number("memory").rank(2),
        ]);
        table.add(["kitchen", "training", "3/15", "150.0 MB"].map(str::to_owned));
        table.add(["居間", "lost", "-", "-"].map(str::to_owned));
        table
    }

    #[test]
    fn without_a_terminal_a_table_is_whole() {
        let expected = "\
device   state     step    memory
kitchen  training  3/15  150.0 MB
居間     lost         -         -
";
        assert_eq!(fleet().text(None), expected);
        assert_eq!(fleet().text(Some(33)), expected, "it fits exactly");
    }

    #[test]
    fn a_narrow_terminal_shows_the_columns_that_matter_most() {
        let text = fleet().text(Some(32));
        assert!(text.starts_with("device   state       memory\nkitchen  training  150.0 MB\n"), "{text}");
        assert!(text.ends_with("(no room for step: widen the\n terminal or use --json)\n"), "{text}");
        assert!(fleet().text(Some(20)).starts_with("device   state\nkitchen  training\n"));
    }

    #[test]
    fn no_line_is_wider_than_the_terminal() {
        let mut table = Table::new([Column::text("run"), Column::text("reason")]);
        table.add(["00a1".to_owned(), "the operator stopped it, because the devices are needed elsewhere".to_owned()]);
        for width in [20, 40, 60, 80] {
            let text = table.text(Some(width));
            assert!(text.lines().all(|line| line.chars().count() <= width), "{width}:\n{text}");
            assert!(text.contains("elsewhere"), "{width}:\n{text}");
        }
    }

    #[test]
    fn rows_that_come_one_by_one_stand_under_their_titles() {
        let columns = || {
            [Column::number("round").room(5), Column::number("accuracy").room(8), Column::number("up").room(8).rank(1)]
        };
        let table = Running::new(columns(), Some(80));
        assert_eq!(table.heading(), "round  accuracy        up\n");
        assert_eq!(table.row(["3", "0.8125", "1.2 MB"].map(str::to_owned)), "    3    0.8125    1.2 MB\n");
        assert_eq!(
            table.remark("4", "skipped: one update came, two are needed"),
            "    4  skipped: one update came, two are needed\n"
        );
        let narrow = Running::new(columns(), Some(20));
        assert_eq!(narrow.heading(), "round  accuracy\n");
        assert_eq!(narrow.remark("4", "skipped: one update came"), "    4  skipped: one\n       update came\n");
    }
}
