package membership

import (
	"github.com/baton-cluster/baton/wire"
)

// meta is what a node says of itself with each sign of life. Its encoding is a
// version byte, a flags byte, and three texts, each after a byte of length. New
// fields are appended: readers of this version ignore what follows.
type meta struct {
	leaving bool
	name    string
	addr    string // management host:port
	cluster string // cluster id; empty: unknown
}

const (
	metaVersion = 1
	metaLeaving = 1 << 0 // flag
)

func (m meta) encode() []byte {
	out := []byte{metaVersion, 0}
	if m.leaving {
		out[1] |= metaLeaving
	}
	for _, s := range []string{m.name, m.addr, m.cluster} {
		out = append(out, byte(len(s)))
		out = append(out, s...)
	}
	return out
}

func decodeMeta(b []byte) (meta, error) {
	bad := wire.Errorf(wire.Code_BAD_REQUEST, "a node's meta cannot be read")
	if len(b) < 2 {
		return meta{}, bad
	}
	if b[0] != metaVersion {
		return meta{}, wire.Errorf(wire.Code_WRONG_VERSION, "a node's meta has version %d; %d is spoken here", b[0], metaVersion)
	}
	m := meta{leaving: b[1]&metaLeaving != 0}
	b = b[2:]
	for _, field := range []struct {
		to  *string
		max int
	}{{&m.name, nameBytesMax}, {&m.addr, addrBytesMax}, {&m.cluster, clusterBytesMax}} {
		if len(b) == 0 {
			return meta{}, bad
		}
		end := 1 + int(b[0])
		if end-1 > field.max || len(b) < end {
			return meta{}, bad
		}
		*field.to = string(b[1:end])
		b = b[end:]
	}
	return m, nil
}
