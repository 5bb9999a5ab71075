package fsm

import (
	"bytes"
	"errors"
	"os"
	"runtime"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/baton-cluster/baton/wire"
)

// everyCommand has one command of each kind with every field set, so that the
// walk knows every field that the encoder writes.
func everyCommand() []*wire.Command {
	var cmds []*wire.Command
	kinds := (&wire.Command{}).ProtoReflect().Descriptor().Oneofs().ByName("kind").Fields()
	for i := range kinds.Len() {
		c := &wire.Command{}
		fill(c.ProtoReflect().Mutable(kinds.Get(i)).Message())
		cmds = append(cmds, c)
	}
	return cmds
}

func fill(m protoreflect.Message) {
	for i := range m.Descriptor().Fields().Len() {
		f := m.Descriptor().Fields().Get(i)
		switch {
		case f.IsList() && f.Message() != nil:
			fill(m.Mutable(f).List().AppendMutable().Message())
		case f.IsList():
			m.Mutable(f).List().Append(scalar(f))
		case f.Message() != nil:
			fill(m.Mutable(f).Message())
		default:
			m.Set(f, scalar(f))
		}
	}
}

func scalar(f protoreflect.FieldDescriptor) protoreflect.Value {
	switch f.Kind() {
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(true)
	case protoreflect.StringKind:
		return protoreflect.ValueOfString("text")
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes([]byte("bytes"))
	case protoreflect.EnumKind:
		return protoreflect.ValueOfEnum(1)
	case protoreflect.Uint32Kind:
		return protoreflect.ValueOfUint32(7)
	case protoreflect.Int64Kind:
		return protoreflect.ValueOfInt64(-7)
	}
	return protoreflect.ValueOfUint64(7)
}

func TestEntryRoundTrip(t *testing.T) {
	for _, e := range []*wire.Entry{
		{},
		{TimeUs: 1, WallUs: -5},
		{TimeUs: 1 << 60, WallUs: 1 << 60, Commands: everyCommand()},
	} {
		b, err := EncodeEntry(e)
		if err != nil {
			t.Fatal(err)
		}
		got, err := DecodeEntry(b)
		if err != nil {
			t.Fatal(err)
		}
		if !proto.Equal(e, got) {
			t.Fatalf("got %v, want %v", got, e)
		}
	}
}

// testdata/entry-v1 was written by the first version that had format 1. It must
// be readable as long as that format is.
func TestEntryGolden(t *testing.T) {
	const name = "testdata/entry-v1"
	if os.Getenv("WRITE_GOLDEN") != "" {
		b, err := EncodeEntry(&wire.Entry{TimeUs: 5, WallUs: 6, Commands: everyCommand()})
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	e, err := DecodeEntry(b)
	if err != nil {
		t.Fatal(err)
	}
	if e.TimeUs != 5 || e.WallUs != 6 || len(e.Commands) < 21 {
		t.Fatalf("decoded %v", e)
	}
	for i, c := range everyCommand()[:len(e.Commands)] {
		// Fields that were added since are unset in the old file.
		if c.ProtoReflect().WhichOneof(c.ProtoReflect().Descriptor().Oneofs().Get(0)).Number() !=
			e.Commands[i].ProtoReflect().WhichOneof(c.ProtoReflect().Descriptor().Oneofs().Get(0)).Number() {
			t.Errorf("command %d is now %v", i, e.Commands[i])
		}
	}
}

func TestDecodeEntryRefuses(t *testing.T) {
	good := encode(t, everyCommand()...)
	frame := func(b ...byte) []byte { return append([]byte{entryVersion}, b...) }
	tooMany := frame()
	for range wire.EntryCommandsMax + 1 {
		tooMany = protowire.AppendTag(tooMany, 3, protowire.BytesType)
		tooMany = protowire.AppendBytes(tooMany, []byte{0xb2, 1, 0}) // tick
	}
	unknownKind := protowire.AppendBytes(protowire.AppendTag(frame(), 3, protowire.BytesType), []byte{0xfa, 1, 0}) // field 31
	inner := protowire.AppendBytes(protowire.AppendTag(nil, 22, protowire.BytesType), []byte{0x08, 1})             // a tick with field 1
	unknownInner := protowire.AppendBytes(protowire.AppendTag(frame(), 3, protowire.BytesType), inner)
	noKind := protowire.AppendBytes(protowire.AppendTag(frame(), 3, protowire.BytesType), []byte{0x08, 1})
	locate := protowire.AppendBytes(protowire.AppendTag(nil, 1, protowire.BytesType), []byte{0xff})
	locate = protowire.AppendBytes(protowire.AppendTag(nil, 21, protowire.BytesType), locate)
	notUTF8 := protowire.AppendBytes(protowire.AppendTag(frame(), 3, protowire.BytesType), locate)
	for name, tc := range map[string]struct {
		b    []byte
		code wire.Code
	}{
		"empty":         {nil, wire.Code_BAD_REQUEST},
		"version 0":     {append([]byte{0}, good[1:]...), wire.Code_WRONG_VERSION},
		"version 2":     {append([]byte{2}, good[1:]...), wire.Code_WRONG_VERSION},
		"too large":     {append(bytes.Clone(good), make([]byte, EntryBytesMax)...), wire.Code_FRAME_TOO_LARGE},
		"unknown field": {append(bytes.Clone(good), 0x20, 1), wire.Code_BAD_REQUEST},
		"unknown kind":  {unknownKind, wire.Code_BAD_REQUEST},
		"unknown inner": {unknownInner, wire.Code_BAD_REQUEST},
		"no kind":       {noKind, wire.Code_BAD_REQUEST},
		"not UTF-8":     {notUTF8, wire.Code_BAD_REQUEST},
		"wire type":     {frame(0x0a, 0), wire.Code_BAD_REQUEST},
		"commands":      {tooMany, wire.Code_BAD_REQUEST},
		"cut":           {good[:len(good)-1], wire.Code_BAD_REQUEST},
	} {
		e, err := DecodeEntry(tc.b)
		if e != nil || wire.CodeOf(err) != tc.code {
			t.Errorf("%s: %v, want %v", name, err, tc.code)
		}
	}
}

// What cannot be decoded must not be encoded (S5).
func TestEncodeEntryRefuses(t *testing.T) {
	tick := &wire.Command{Kind: &wire.Command_Tick{Tick: &wire.Tick{}}}
	many := make([]*wire.Command, wire.EntryCommandsMax+1)
	for i := range many {
		many[i] = tick
	}
	unknown := &wire.Command{Kind: &wire.Command_Tick{Tick: &wire.Tick{}}}
	unknown.GetTick().ProtoReflect().SetUnknown(protoreflect.RawFields{0x08, 1})
	for name, tc := range map[string]struct {
		cmds []*wire.Command
		code wire.Code
	}{
		"no kind":       {[]*wire.Command{{}}, wire.Code_BAD_REQUEST},
		"nil":           {[]*wire.Command{nil}, wire.Code_BAD_REQUEST},
		"many":          {many, wire.Code_BAD_REQUEST},
		"not UTF-8":     {[]*wire.Command{{Kind: &wire.Command_Locate{Locate: &wire.Locate{Session: "\xff"}}}}, wire.Code_BAD_REQUEST},
		"unknown field": {[]*wire.Command{unknown}, wire.Code_BAD_REQUEST},
		"large":         {[]*wire.Command{writeCommand(1, 1, make([]byte, EntryBytesMax))}, wire.Code_FRAME_TOO_LARGE},
	} {
		if b, err := EncodeEntry(&wire.Entry{Commands: tc.cmds}); b != nil || wire.CodeOf(err) != tc.code {
			t.Errorf("%s: %v, want %v", name, err, tc.code)
		}
	}
}

// The largest command that the store accepts fits an entry.
func TestLargestWriteFits(t *testing.T) {
	w := writeCommand(0, 1, make([]byte, wire.ValueBytesMax))
	w.GetWrite().Pushes = [][]byte{make([]byte, wire.ValueBytesMax)}
	w.GetWrite().Reply.Payload = make([]byte, wire.ReplyBytesMax)
	f := populated(t, 0, 0)
	cmds := sessionCommands(0, nil)
	apply(t, f, 2, cmds[0], cmds[1])
	apply(t, f, 3, w)
	if _, err := ReadSnapshot(bytes.NewReader(snapshotFile(t, f))); err != nil {
		t.Fatal(err)
	}
}

// An entry of two-byte messages must not take a hundred times its size.
func TestDecodeEntryAllocatesLittle(t *testing.T) {
	changes := bytes.Repeat([]byte{0x42, 0}, (EntryBytesMax-64)/2) // field 8: an empty Change
	write := protowire.AppendBytes(protowire.AppendTag(nil, 10, protowire.BytesType), changes)
	b := protowire.AppendBytes(protowire.AppendTag([]byte{entryVersion}, 3, protowire.BytesType), write)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, err := DecodeEntry(b)
	runtime.ReadMemStats(&after)
	if err == nil {
		t.Fatal("accepted")
	}
	if used := after.TotalAlloc - before.TotalAlloc; used > 1<<20 {
		t.Fatalf("%d bytes allocated", used)
	}
}

func FuzzDecodeEntry(f *testing.F) {
	good := encode(f, everyCommand()...)
	f.Add(good)
	for _, c := range everyCommand() {
		f.Add(encode(f, c))
	}
	f.Add(good[:len(good)/2])
	f.Add([]byte{entryVersion})
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := DecodeEntry(b)
		if err != nil {
			var typed *wire.Error
			if e != nil || !errors.As(err, &typed) {
				t.Fatalf("%v, %v", e, err)
			}
			return
		}
		again, err := EncodeEntry(e)
		if err != nil {
			t.Fatalf("what was decoded cannot be encoded: %v", err)
		}
		back, err := DecodeEntry(again)
		if err != nil || !proto.Equal(e, back) {
			t.Fatalf("round trip: %v", err)
		}
	})
}

func BenchmarkDecodeEntry(b *testing.B) {
	var cmds []*wire.Command
	for i := range 64 {
		cmds = append(cmds, writeCommand(i, 1, make([]byte, 64)))
	}
	data := encode(b, cmds...)
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	for range b.N {
		if _, err := DecodeEntry(data); err != nil {
			b.Fatal(err)
		}
	}
}
