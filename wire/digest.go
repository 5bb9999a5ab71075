package wire

import (
	"encoding/binary"

	"github.com/cespare/xxhash/v2"
)

// Digest is the digest of a Write's effect: its changes, pushes and reply. It
// hashes fields, not marshalled bytes, because protobuf is not canonical.
func Digest(w *Write) uint64 {
	d := xxhash.New()
	for _, c := range w.GetChanges() {
		writeString(d, c.GetKey())
		writeBytes(d, c.GetValue())
		if c.GetDelete() {
			writeUint(d, 1)
		} else {
			writeUint(d, 0)
		}
	}
	writeUint(d, uint64(len(w.GetChanges())))
	for _, p := range w.GetPushes() {
		writeBytes(d, p)
	}
	writeUint(d, uint64(len(w.GetPushes())))
	r := w.GetReply()
	writeUint(d, uint64(r.GetCode()))
	writeString(d, r.GetMessage())
	writeBytes(d, r.GetPayload())
	return d.Sum64()
}

func writeUint(d *xxhash.Digest, v uint64) {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], v)
	_, _ = d.Write(b[:])
}

func writeString(d *xxhash.Digest, s string) {
	writeUint(d, uint64(len(s)))
	_, _ = d.WriteString(s)
}

func writeBytes(d *xxhash.Digest, b []byte) {
	writeUint(d, uint64(len(b)))
	_, _ = d.Write(b)
}
