package baton

import (
	"context"
	"encoding/binary"
	"strconv"
	"time"

	"github.com/baton-cluster/baton/wire"
)

// The built-in key→value application: methods that make a stock node useful
// without code, and the Session methods that call them.

// Methods of the key→value application. Keys, values and what goes with them are
// fields, each preceded by its length as an unsigned varint, and so is what
// MethodGet returns. The payloads of MethodPush and MethodEcho, and all other
// replies, are bytes as they are.
const (
	MethodGet    = "kv.get"    // key → "1" and value, or "0" and an empty one
	MethodPut    = "kv.put"    // key, value → nothing
	MethodDelete = "kv.delete" // key → "1" if it was there, else "0"
	MethodCAS    = "kv.cas"    // key, has-old ("1" or "0"), old, value → "1" if it was set, else "0"
	MethodIncr   = "kv.incr"   // key, n in decimal → sum in decimal
	MethodPush   = "kv.push"   // payload, pushed to the session's clients
	MethodEcho   = "echo"      // payload → payload, writes nothing
)

// KV makes a Mux with the key→value application. More methods may be added.
func KV() *Mux {
	m := NewMux()
	m.HandleRead(MethodGet, kvGet)
	m.HandleRead(MethodEcho, func(_ *View, p []byte) ([]byte, error) { return p, nil })
	m.Handle(MethodPut, func(tx *Tx, p []byte) ([]byte, error) {
		f, err := fields(p, 2)
		if err != nil {
			return nil, err
		}
		return nil, tx.Put(string(f[0]), f[1])
	})
	m.Handle(MethodDelete, func(tx *Tx, p []byte) ([]byte, error) {
		f, err := fields(p, 1)
		if err != nil {
			return nil, err
		}
		return flag(tx.Delete(string(f[0]))), nil
	})
	m.Handle(MethodCAS, kvCAS)
	m.Handle(MethodIncr, kvIncr)
	m.Handle(MethodPush, func(tx *Tx, p []byte) ([]byte, error) { return nil, tx.Push(p) })
	return m
}

func kvGet(v *View, p []byte) ([]byte, error) {
	f, err := fields(p, 1)
	if err != nil {
		return nil, err
	}
	val, ok := v.Get(string(f[0]))
	return join(flag(ok), val), nil
}

func kvCAS(tx *Tx, p []byte) ([]byte, error) {
	f, err := fields(p, 4)
	if err != nil {
		return nil, err
	}
	old, value := f[2], f[3]
	if string(f[1]) == "0" {
		old = nil
	}
	if value == nil {
		value = []byte{}
	}
	ok, err := tx.CompareAndSet(string(f[0]), old, value)
	return flag(ok), err
}

func kvIncr(tx *Tx, p []byte) ([]byte, error) {
	f, err := fields(p, 2)
	if err != nil {
		return nil, err
	}
	n, err := strconv.ParseInt(string(f[1]), 10, 64)
	if err != nil {
		return nil, Errorf(wire.Code_BAD_REQUEST, "incr takes a decimal integer, not %q", f[1])
	}
	sum, err := tx.Incr(string(f[0]), n)
	return strconv.AppendInt(nil, sum, 10), err
}

func flag(b bool) []byte {
	if b {
		return []byte("1")
	}
	return []byte("0")
}

// join encodes fields.
func join(fields ...[]byte) []byte {
	var out []byte
	for _, f := range fields {
		out = binary.AppendUvarint(out, uint64(len(f)))
		out = append(out, f...)
	}
	return out
}

// fields decodes exactly n fields. They alias p; none is nil.
func fields(p []byte, n int) ([][]byte, error) {
	out := make([][]byte, 0, n)
	for range n {
		size, k := binary.Uvarint(p)
		if k <= 0 || size > uint64(len(p)-k) {
			return nil, Errorf(wire.Code_BAD_REQUEST, "the payload must hold %d fields with their lengths", n)
		}
		out = append(out, p[k:k+int(size):k+int(size)])
		p = p[k+int(size):]
	}
	if len(p) > 0 {
		return nil, Errorf(wire.Code_BAD_REQUEST, "the payload must hold %d fields with their lengths, and nothing after", n)
	}
	return out, nil
}

// Value is what Get found.
type Value struct {
	Value []byte
	Found bool
	Epoch uint64
	Owner string // node name
	Index uint64 // change position of the session that the value was read at
	// Leased: the owner answered from memory, under its lease; At is when this
	// client took the answer, on its clock.
	Leased bool
	At     time.Duration
}

// Get reads key, linearizably.
func (s *Session) Get(ctx context.Context, key string, options ...QueryOption) (Value, error) {
	r, err := s.Query(ctx, MethodGet, join([]byte(key)), options...)
	if err != nil {
		return Value{}, err
	}
	f, err := fields(r.Payload, 2)
	if err != nil {
		return Value{}, err
	}
	return Value{Value: f[1], Found: string(f[0]) == "1", Epoch: r.Epoch, Owner: r.Node, Index: r.Change, Leased: r.Leased, At: r.At}, nil
}

// Put sets key to value.
func (s *Session) Put(ctx context.Context, key string, value []byte) (Reply, error) {
	return s.Call(ctx, MethodPut, join([]byte(key), value))
}

// Delete removes key and reports whether it was there.
func (s *Session) Delete(ctx context.Context, key string) (bool, Reply, error) {
	r, err := s.Call(ctx, MethodDelete, join([]byte(key)))
	return string(r.Payload) == "1", r, err
}

// Incr adds n to the decimal integer at key and returns the sum.
func (s *Session) Incr(ctx context.Context, key string, n int64) (int64, Reply, error) {
	r, err := s.Call(ctx, MethodIncr, join([]byte(key), strconv.AppendInt(nil, n, 10)))
	if err != nil {
		return 0, r, err
	}
	sum, err := strconv.ParseInt(string(r.Payload), 10, 64)
	return sum, r, err
}

// CompareAndSet sets key to value if it holds old (nil: if it is absent), and
// reports whether it did.
func (s *Session) CompareAndSet(ctx context.Context, key string, old, value []byte) (bool, Reply, error) {
	r, err := s.Call(ctx, MethodCAS, join([]byte(key), flag(old != nil), old, value))
	return string(r.Payload) == "1", r, err
}

// Push sends payload to the session's clients through the log: durable, in
// order, once.
func (s *Session) Push(ctx context.Context, payload []byte) (Reply, error) {
	return s.Call(ctx, MethodPush, payload)
}
