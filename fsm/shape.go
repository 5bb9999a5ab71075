package fsm

import (
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/baton-cluster/baton/wire"
)

// itemsMax bounds the length-delimited fields of one entry (and, with blockItemsMax,
// of a snapshot's record): as many
// as the largest legitimate one needs (a full state: key, value and message
// each, twice over), and few enough that decoding two-byte messages by the
// million costs no memory.
const itemsMax = 1 << 18

// shape is what a message may look like on the wire, worked out once from its
// descriptor, so that walking a message costs a few ns a field.
type shape struct {
	name   string
	fields []fieldShape // by field number
}

type fieldShape struct {
	known bool
	typ   protowire.Type
	child *shape // of a message
}

var (
	entryShape  = shapeOf((&wire.Entry{}).ProtoReflect().Descriptor(), map[protoreflect.FullName]*shape{})
	recordShape = shapeOf((&wire.SnapshotRecord{}).ProtoReflect().Descriptor(), map[protoreflect.FullName]*shape{})
)

func shapeOf(d protoreflect.MessageDescriptor, seen map[protoreflect.FullName]*shape) *shape {
	if s := seen[d.FullName()]; s != nil {
		return s
	}
	s := &shape{name: string(d.Name())}
	seen[d.FullName()] = s
	for i := range d.Fields().Len() {
		f := d.Fields().Get(i)
		n := int(f.Number())
		for len(s.fields) <= n {
			s.fields = append(s.fields, fieldShape{})
		}
		fs := fieldShape{known: true, typ: protowire.VarintType}
		switch f.Kind() {
		case protoreflect.StringKind, protoreflect.BytesKind:
			fs.typ = protowire.BytesType
		case protoreflect.MessageKind:
			fs.typ = protowire.BytesType
			fs.child = shapeOf(f.Message(), seen)
		}
		s.fields[n] = fs
	}
	return s
}

// walk checks that b is well formed and holds only fields that this build
// knows, and at most *items strings, byte strings and messages. It allocates
// nothing, so it comes before decoding.
func (s *shape) walk(b []byte, items *int) error {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return fmt.Errorf("%s: %w", s.name, protowire.ParseError(n))
		}
		b = b[n:]
		if int(num) >= len(s.fields) || !s.fields[num].known || s.fields[num].typ != typ {
			return fmt.Errorf("%s: unknown field %d: written by a newer version?", s.name, num)
		}
		if typ == protowire.VarintType {
			_, n = protowire.ConsumeVarint(b)
			if n < 0 {
				return fmt.Errorf("%s: field %d: %w", s.name, num, protowire.ParseError(n))
			}
			b = b[n:]
			continue
		}
		v, n := protowire.ConsumeBytes(b)
		if n < 0 {
			return fmt.Errorf("%s: field %d: %w", s.name, num, protowire.ParseError(n))
		}
		b = b[n:]
		if *items--; *items < 0 {
			return fmt.Errorf("%s: too many parts", s.name)
		}
		if child := s.fields[num].child; child != nil {
			if err := child.walk(v, items); err != nil {
				return err
			}
		}
	}
	return nil
}
