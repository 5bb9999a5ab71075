package fsm

import (
	"fmt"

	"google.golang.org/protobuf/proto"

	"github.com/baton-cluster/baton/store"
	"github.com/baton-cluster/baton/wire"
)

const (
	// entryVersion is the first byte of every log entry. Version 1: a wire.Entry
	// in protobuf follows.
	entryVersion = 1
	// EntryBytesMax bounds an encoded entry. Entries are gathered up to
	// wire.EntryBytesMax; one larger command travels alone, and a Write that
	// replaces a whole state, fills the outbox and carries the largest reply
	// stays below this.
	EntryBytesMax = 4 << 20
)

// EncodeEntry encodes an entry for the log, and refuses whatever DecodeEntry
// would refuse, so that no entry which would halt the replicas gets in (S5).
func EncodeEntry(e *wire.Entry) ([]byte, error) {
	if err := checkEntry(e); err != nil {
		return nil, err
	}
	b := make([]byte, 1, 1+proto.Size(e))
	b[0] = entryVersion
	b, err := proto.MarshalOptions{UseCachedSize: true}.MarshalAppend(b, e)
	if err != nil {
		return nil, wire.Errorf(wire.Code_BAD_REQUEST, "the entry cannot be encoded: %v", err)
	}
	if len(b) > EntryBytesMax {
		return nil, wire.Errorf(wire.Code_FRAME_TOO_LARGE,
			"the entry has %d bytes, at most %d fit: send a smaller request", len(b), EntryBytesMax)
	}
	items := itemsMax
	if err := entryShape.walk(b[1:], &items); err != nil {
		return nil, wire.Errorf(wire.Code_BAD_REQUEST, "the entry would not be readable: %v", err)
	}
	return b, nil
}

// DecodeEntry decodes what EncodeEntry made. It refuses another version, fields
// and commands that this build does not know, and sizes out of bounds, and
// allocates no more than a bounded multiple of len(b). The entry does not alias
// b. Errors are *wire.Error with WRONG_VERSION, FRAME_TOO_LARGE or BAD_REQUEST.
func DecodeEntry(b []byte) (*wire.Entry, error) {
	switch {
	case len(b) == 0:
		return nil, wire.Errorf(wire.Code_BAD_REQUEST, "the entry is empty")
	case b[0] != entryVersion:
		return nil, wire.Errorf(wire.Code_WRONG_VERSION, "the entry has format %d, this build reads %d", b[0], entryVersion)
	case len(b) > EntryBytesMax:
		return nil, wire.Errorf(wire.Code_FRAME_TOO_LARGE, "the entry has %d bytes, at most %d are valid", len(b), EntryBytesMax)
	}
	items := itemsMax
	if err := entryShape.walk(b[1:], &items); err != nil {
		return nil, wire.Errorf(wire.Code_BAD_REQUEST, "the entry is unreadable: %v", err)
	}
	e := &wire.Entry{}
	if err := proto.Unmarshal(b[1:], e); err != nil {
		return nil, wire.Errorf(wire.Code_BAD_REQUEST, "the entry is unreadable: %v", err)
	}
	if err := checkEntry(e); err != nil {
		return nil, err
	}
	return e, nil
}

// checkEntry checks what a readable entry must be for the store to apply it.
func checkEntry(e *wire.Entry) error {
	if n := len(e.GetCommands()); n > wire.EntryCommandsMax {
		return wire.Errorf(wire.Code_BAD_REQUEST, "the entry has %d commands, at most %d are valid", n, wire.EntryCommandsMax)
	}
	for i, c := range e.GetCommands() {
		if !store.Known(c) {
			return fmt.Errorf("command %d: %w", i,
				wire.Errorf(wire.Code_BAD_REQUEST, "unknown kind of command: written by a newer version?"))
		}
	}
	return nil
}
