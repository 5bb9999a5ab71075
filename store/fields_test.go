package store

import (
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/baton-cluster/baton/wire"
)

// eachField calls f once for every scalar in every record, with that scalar
// changed: so a field that is added to a row and forgotten in the hash, or on
// the way in or out, turns the test red.
func eachField(list []*wire.SnapshotRecord, f func(i int, name string, rec *wire.SnapshotRecord)) {
	for i, rec := range list {
		for n := 0; ; n++ {
			c := proto.Clone(rec).(*wire.SnapshotRecord)
			left := n
			name := change(c.ProtoReflect(), &left)
			if name == "" {
				break
			}
			f(i, name, c)
		}
	}
}

// change changes the left-th scalar of m in depth-first order of its
// descriptor, unset ones included, and returns its name; "" if there are fewer.
func change(m protoreflect.Message, left *int) string {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		switch {
		case f.IsList() && f.Message() != nil:
			for j := range m.Get(f).List().Len() {
				if name := change(m.Mutable(f).List().Get(j).Message(), left); name != "" {
					return string(f.Name()) + "." + name
				}
			}
		case f.Message() != nil:
			if !m.Has(f) {
				continue
			}
			if name := change(m.Mutable(f).Message(), left); name != "" {
				return string(f.Name()) + "." + name
			}
		default:
			if *left == 0 {
				m.Set(f, other(f, m.Get(f)))
				return string(f.Name())
			}
			*left--
		}
	}
	return ""
}

func other(f protoreflect.FieldDescriptor, v protoreflect.Value) protoreflect.Value {
	switch f.Kind() {
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(!v.Bool())
	case protoreflect.StringKind:
		return protoreflect.ValueOfString(v.String() + "~")
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes(append(append([]byte{}, v.Bytes()...), '~'))
	case protoreflect.EnumKind:
		return protoreflect.ValueOfEnum(v.Enum() + 1)
	case protoreflect.Uint32Kind:
		return protoreflect.ValueOfUint32(uint32(v.Uint()) + 1)
	case protoreflect.Int64Kind:
		return protoreflect.ValueOfInt64(v.Int() + 1)
	}
	return protoreflect.ValueOfUint64(v.Uint() + 1)
}
