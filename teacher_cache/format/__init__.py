"""The contract between builder and reader: manifest, arrays, commit records, codecs (docs/format.md in words)."""
