"""Files on disk -> records: one reader a format, AIHub's schemas as data. Nothing is ever unpacked to disk."""
