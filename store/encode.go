package store

import (
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/baton-cluster/baton/wire"
)

// A snapshot of a million sessions is written while the node serves, so its rows are
// encoded without a message for each of their parts. What comes out is what
// proto.Marshal makes of row.proto, field by field; TestPackedRowIsTheRow compares.

// appendSession appends the row as a wire.SessionRow.
func (r *row) appendSession(b []byte) []byte {
	b = appendText(b, 1, r.id)
	b = appendRaw(b, 2, r.secretHash)
	b = appendUint(b, 3, r.ttlUS)
	b = appendUint(b, 4, protowire.EncodeBool(r.shared))
	b = appendRaw(b, 5, r.nonce)
	b = appendUint(b, 6, r.openDeadlineUS)
	b = r.owner.append(b, 7)
	b = appendUint(b, 8, r.epoch)
	for i := range r.attachments {
		var at int
		b, at = openMessage(b, 9)
		b = appendUint(b, 1, r.attachments[i].number)
		b = appendText(b, 2, r.attachments[i].client)
		b = closeMessage(b, at)
	}
	b = appendUint(b, 10, r.attachHigh)
	b = appendUint(b, 11, r.expiresUS)
	for i := range r.state {
		var at int
		b, at = openMessage(b, 12)
		b = appendText(b, 1, r.state[i].key)
		b = appendRaw(b, 2, r.state[i].value)
		b = closeMessage(b, at)
	}
	for i := range r.windows {
		b = r.windows[i].append(b, 13)
	}
	for i := range r.outbox {
		var at int
		b, at = openMessage(b, 14)
		b = appendUint(b, 1, r.outbox[i].seq)
		b = appendRaw(b, 2, r.outbox[i].payload)
		b = closeMessage(b, at)
	}
	b = appendUint(b, 15, r.pushNext)
	b = appendUint(b, 16, r.change)
	for i := range r.history {
		b = r.history[i].append(b, 17)
	}
	b = appendUint(b, 18, r.migration)
	return appendUint(b, 19, r.bytes)
}

func (o owner) append(b []byte, field protowire.Number) []byte {
	b, at := openMessage(b, field)
	b = appendText(b, 1, o.worker)
	b = appendUint(b, 2, o.incarnation)
	return closeMessage(b, at)
}

func (w *window) append(b []byte, field protowire.Number) []byte {
	b, at := openMessage(b, field)
	b = appendText(b, 1, w.client)
	b = appendUint(b, 2, w.last)
	b = appendUint(b, 3, w.ack)
	for i := range w.replies {
		b = w.replies[i].append(b, 4)
	}
	b = appendUint(b, 5, w.pushAck)
	b = appendUint(b, 6, w.attached)
	return closeMessage(b, at)
}

func (p *cachedReply) append(b []byte, field protowire.Number) []byte {
	b, cached := openMessage(b, field)
	b, reply := openMessage(b, 1)
	b = appendUint(b, 1, p.seq)
	b = appendInt(b, 2, int64(p.code))
	b = appendText(b, 3, p.message)
	b = appendRaw(b, 4, p.payload)
	b = closeMessage(b, reply)
	b = appendUint(b, 2, p.digest)
	return closeMessage(b, cached)
}

func (c *ownerChange) append(b []byte, field protowire.Number) []byte {
	b, at := openMessage(b, field)
	b = appendUint(b, 1, c.epoch)
	b = c.owner.append(b, 2)
	b = appendText(b, 3, c.from)
	b = appendUint(b, 4, c.index)
	b = appendInt(b, 5, c.wallUS)
	b = appendText(b, 6, c.reason)
	b = appendText(b, 7, c.by)
	b = appendUint(b, 8, c.migration)
	b = appendUint(b, 9, c.pauseUS)
	return closeMessage(b, at)
}

// sessionRecord appends a wire.SnapshotRecord of the row.
func (r *row) sessionRecord(b []byte) []byte {
	b, at := openMessage(b, sessionField)
	b = r.appendSession(b)
	return closeMessage(b, at)
}

// sessionField is where a record holds a session.
var sessionField = (&wire.SnapshotRecord{}).ProtoReflect().Descriptor().Fields().ByName("session").Number()

func appendUint(b []byte, field protowire.Number, v uint64) []byte {
	if v == 0 {
		return b
	}
	return protowire.AppendVarint(protowire.AppendTag(b, field, protowire.VarintType), v)
}

func appendInt(b []byte, field protowire.Number, v int64) []byte {
	return appendUint(b, field, uint64(v))
}

func appendText(b []byte, field protowire.Number, v string) []byte {
	if v == "" {
		return b
	}
	return protowire.AppendString(protowire.AppendTag(b, field, protowire.BytesType), v)
}

func appendRaw(b []byte, field protowire.Number, v []byte) []byte {
	if len(v) == 0 {
		return b
	}
	return protowire.AppendBytes(protowire.AppendTag(b, field, protowire.BytesType), v)
}

// openMessage begins a message whose length is not known yet: it takes one byte for
// that, which closeMessage makes more of if it has to.
func openMessage(b []byte, field protowire.Number) (with []byte, at int) {
	b = append(protowire.AppendTag(b, field, protowire.BytesType), 0)
	return b, len(b)
}

func closeMessage(b []byte, at int) []byte {
	n := uint64(len(b) - at)
	more := protowire.SizeVarint(n) - 1
	for range more {
		b = append(b, 0)
	}
	copy(b[at+more:], b[at:len(b)-more])
	protowire.AppendVarint(b[:at-1], n)
	return b
}
