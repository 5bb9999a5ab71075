package migrate

import (
	"encoding/binary"

	"github.com/baton-cluster/baton/wire"
)

// Binding is what a token and a sealed snapshot are bound to: one migration of
// one session between two incarnations in one cluster. Either, put to another
// use, is refused.
type Binding struct {
	ClusterID   []byte
	Migration   uint64 // snapshots only: a token is minted before its migration has an id
	Session     string
	SourceEpoch uint64
	Source      *wire.Owner // tokens only
	Target      *wire.Owner
}

// BindingOf is the binding of migration m in cluster clusterID.
func BindingOf(clusterID []byte, m *wire.Migration) Binding {
	return Binding{
		ClusterID:   clusterID,
		Migration:   m.GetId(),
		Session:     m.GetSession(),
		SourceEpoch: m.GetSourceEpoch(),
		Source:      m.GetSource(),
		Target:      m.GetTarget(),
	}
}

// The fields below are encoded with their lengths, so that no two bindings have
// the same encoding: "ab"+"c" is not "a"+"bc".

func appendBytes(dst, b []byte) []byte {
	dst = binary.BigEndian.AppendUint64(dst, uint64(len(b)))
	return append(dst, b...)
}

func appendString(dst []byte, s string) []byte {
	dst = binary.BigEndian.AppendUint64(dst, uint64(len(s)))
	return append(dst, s...)
}

func appendOwner(dst []byte, o *wire.Owner) []byte {
	dst = appendString(dst, o.GetWorker())
	return binary.BigEndian.AppendUint64(dst, o.GetIncarnation())
}
