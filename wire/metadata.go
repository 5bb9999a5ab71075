package wire

import "unicode/utf8"

// Metadata is what the requester of a migration notes on it, for people and
// their programs: Baton keeps it with the migration's record and reads nothing
// of it. The bounds keep a record about as small as a session's history.
const (
	MetadataMax           = 16
	MetadataKeyBytesMax   = 64
	MetadataValueBytesMax = 256
)

// CheckMetadata reports the first fault of a migration's metadata: too many
// entries, a key that is empty, too long or not above the one before, a value
// that is too long, or text that is not UTF-8.
func CheckMetadata(list []*Label) error {
	if len(list) > MetadataMax {
		return Errorf(Code_BAD_REQUEST, "there are at most %d entries, not %d", MetadataMax, len(list))
	}
	for i, l := range list {
		switch k, v := l.GetKey(), l.GetValue(); {
		case k == "" || len(k) > MetadataKeyBytesMax || !utf8.ValidString(k):
			return Errorf(Code_BAD_REQUEST, "a key has 1 to %d bytes of UTF-8", MetadataKeyBytesMax)
		case len(v) > MetadataValueBytesMax || !utf8.ValidString(v):
			return Errorf(Code_BAD_REQUEST, "the value of %q has more than %d bytes, or is not UTF-8", k, MetadataValueBytesMax)
		case i > 0 && k <= list[i-1].GetKey():
			return Errorf(Code_BAD_REQUEST, "the keys must rise, each once")
		}
	}
	return nil
}
