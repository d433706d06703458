CREATE TABLE removal (
    number INTEGER PRIMARY KEY, device TEXT NOT NULL, boot INTEGER, at_ms INTEGER NOT NULL, by TEXT NOT NULL,
    reason TEXT NOT NULL, was_online INTEGER NOT NULL, cleared_ms INTEGER, returned_ms INTEGER
) STRICT;
