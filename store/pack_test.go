package store

import (
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/baton-cluster/baton/wire"
)

// fullRow has every part that a row can have, at rest.
func fullRow() *wire.SessionRow {
	return &wire.SessionRow{
		Id: "s", SecretHash: []byte("hash"), TtlUs: 300, Shared: true, OpenNonce: []byte("nonce"), OpenDeadlineUs: 1 << 40,
		Owner: &wire.Owner{Worker: "w", Incarnation: 7}, Epoch: 9, AttachHigh: 4, ExpiresUs: 1 << 41,
		State: []*wire.Change{{Key: "a", Value: []byte("x")}, {Key: "b"}},
		Clients: []*wire.ClientWindow{
			{Client: []byte("c"), Last: 9, Ack: 3, PushAck: 2, Attached: 77, Replies: []*wire.CachedReply{
				{Reply: &wire.Reply{Seq: 3, Code: wire.Code_CANCELLED, Message: "m", Payload: []byte("p")}, Digest: 1 << 63},
				{Reply: &wire.Reply{Seq: 9}},
			}},
			{Client: []byte("d"), Last: 1},
		},
		Outbox: []*wire.Push{{Seq: 5, Payload: []byte("push")}, {Seq: 6}}, PushNext: 7,
		Change: 1 << 30, Migration: 12,
		History: []*wire.OwnerChange{
			{Epoch: 3, Owner: &wire.Owner{Worker: "v", Incarnation: 1}, Index: 2, WallUs: -5, Reason: reasonOpened, By: "me"},
			{Epoch: 9, Owner: &wire.Owner{Worker: "w", Incarnation: 7}, From: "v", Index: 8, WallUs: 1 << 50, Reason: "moved", Migration: 11, PauseUs: 900},
		},
	}
}

// TestPackedRowIsTheRow changes each field of a row in turn, so that one which is
// added and forgotten in pack turns it red.
func TestPackedRowIsTheRow(t *testing.T) {
	var h hasher
	var workers names
	scan := scanner{}
	tried := 0
	full := &wire.SnapshotRecord{Kind: &wire.SnapshotRecord_Session{Session: fullRow()}}
	check := func(_ int, name string, rec *wire.SnapshotRecord) {
		p := rec.GetSession()
		r, err := loadRow(&h, withBytes(&h, p))
		if err != nil {
			return // no row could be like that
		}
		tried++
		again := unpack(string(r.pack(nil, &workers)), workers.list)
		again.rehashAll(&h)
		if again.hash != h.row(r) || again.seed != r.seed || again.parts != r.parts {
			t.Errorf("%s: another hash", name)
		}
		if !proto.Equal(again.proto(), r.proto()) {
			t.Errorf("%s:\ngot  %v\nwant %v", name, again.proto(), r.proto())
		}
		// As it is written to a snapshot: packed, after another, and attached.
		for _, e := range []slot{{packed: string(r.pack(nil, &workers))}, {live: r}} {
			scan.names = workers.list
			got := &wire.SnapshotRecord{}
			if err := proto.Unmarshal(scan.row(e).sessionRecord(nil), got); err != nil || !proto.Equal(got.GetSession(), r.proto()) {
				t.Errorf("%s: in a snapshot, %v:\ngot  %v\nwant %v", name, err, got, r.proto())
			}
		}
		if again.stateBytes != r.stateBytes || again.replyBytes != r.replyBytes ||
			again.replyCount != r.replyCount || again.outboxBytes != r.outboxBytes {
			t.Errorf("%s: other sizes", name)
		}
		if id := (slot{packed: string(r.pack(nil, &workers))}).id(); id != r.id {
			t.Errorf("%s: filed under %q, not %q", name, id, r.id)
		}
	}
	check(0, "nothing", full)
	eachField([]*wire.SnapshotRecord{full}, check)
	if tried < 40 {
		t.Fatalf("only %d rows tried", tried)
	}
}

// withBytes completes p with what it is charged.
func withBytes(h *hasher, p *wire.SessionRow) *wire.SessionRow {
	p = proto.Clone(p).(*wire.SessionRow)
	n := uint64(wire.SessionBytesFixed + len(p.GetId()))
	for _, c := range p.GetState() {
		n += uint64(EntryBytes(c.GetKey(), c.GetValue()))
	}
	for _, w := range p.GetClients() {
		n += uint64(windowBytes(string(w.GetClient())))
		for _, c := range w.GetReplies() {
			n += uint64(len(c.GetReply().GetMessage()) + len(c.GetReply().GetPayload()) + wire.EntryOverheadBytes)
		}
	}
	for _, q := range p.GetOutbox() {
		n += uint64(pushCharge(q.GetPayload()))
	}
	p.Bytes = n
	return p
}

// TestUnpackedRowIsTheReadersOwn: what a reader gets of a session at rest may be
// kept while the session goes on.
func TestUnpackedRowIsTheReadersOwn(t *testing.T) {
	h := newHarness(t).attached()
	h.ok(h.writeCmd("s", "c", 1, 0, put("k", "v")))
	h.ok(h.detachCmd("s", 1))
	before := h.s.Row("s")
	kept := proto.Clone(before).(*wire.SessionRow)
	h.s.row("s").state[0].value[0] = 'X' // a reader that spoils its own copy
	if got := h.s.Row("s"); !proto.Equal(got, kept) || !proto.Equal(before, kept) {
		t.Fatalf("the table changed with a reader's copy: %v", got)
	}
}
