package store

import (
	"bytes"
	"fmt"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/baton-cluster/baton/wire"
)

const (
	ticketKey = uint32(wire.KeyKind_KEY_KIND_TICKET)
	sealKey   = uint32(wire.KeyKind_KEY_KIND_SEAL)
)

func rotateCmd(generation uint64, nonce string, kinds uint32) *wire.Command {
	return &wire.Command{Kind: &wire.Command_RotateKeys{RotateKeys: &wire.RotateKeys{
		Nonce: []byte(nonce), Generation: generation, Kinds: kinds, By: "by",
		Root: bytes.Repeat([]byte{byte(generation)}, wire.WrappedRootBytes),
	}}}
}

// ring is each generation with whether it is in use: "1 2*".
func (h *harness) ring() (s string) {
	for _, g := range h.s.Keys() {
		s += fmt.Sprint(" ", g.Generation)
		if g.ReplacedUs == 0 {
			s += "*"
		}
	}
	return s
}

func (h *harness) wantRing(want string) {
	h.t.Helper()
	if got := h.ring(); got != want {
		h.t.Fatalf("the ring is%s, want%s", got, want)
	}
}

// Before the first rotation generation 0 is all there is; afterwards it is as
// any that was replaced.
func TestKeysRotate(t *testing.T) {
	h := newHarness(t)
	h.wantRing("")
	if res := h.ok(rotateCmd(1, "one", 0)); res.Epoch != 1 {
		t.Fatalf("%v", res)
	}
	if len(h.events) != 1 || h.events[0].Kind != EventKeys {
		t.Fatalf("events %v", h.events)
	}
	h.wantRing(" 0 1*")
	h.ok(rotateCmd(2, "two", 0))
	h.wantRing(" 0 1 2*")
	if res := h.duplicate(rotateCmd(1, "one", 0)); res.Epoch != 1 {
		t.Fatalf("%v", res)
	}
	for _, generation := range []uint64{0, 1, 2, 4} {
		if res := h.refuse(wire.Code_KEYS_ROTATED, rotateCmd(generation, "three", 0)); res.Current != 2 {
			t.Fatalf("%v", res)
		}
	}
	for name, bad := range map[string]*wire.Command{
		"no nonce":     rotateCmd(3, "", 0),
		"unknown kind": rotateCmd(3, "three", 8),
		"no root":      with(rotateCmd(3, "three", 0), func(c *wire.Command) { c.GetRotateKeys().Root = nil }),
		"short root":   with(rotateCmd(3, "three", 0), func(c *wire.Command) { c.GetRotateKeys().Root = make([]byte, wire.RootBytes) }),
	} {
		if h.refuse(wire.Code_BAD_REQUEST, bad); h.ring() != " 0 1 2*" {
			t.Fatalf("%s changed the ring", name)
		}
	}
}

// A generation is in use while it is the newest of one of its kinds.
func TestKeysRotateByKind(t *testing.T) {
	h := newHarness(t)
	h.ok(rotateCmd(1, "one", 0))
	h.ok(rotateCmd(2, "two", ticketKey))
	h.wantRing(" 0 1* 2*")
	h.ok(rotateCmd(3, "three", ticketKey|sealKey))
	h.wantRing(" 0 1* 2 3*")
	h.ok(rotateCmd(4, "four", 0))
	h.wantRing(" 0 1 2 3 4*")
}

// What was replaced opens for a week of log time, and not a moment longer; what
// is in use stays.
func TestKeysAreDropped(t *testing.T) {
	h := newHarness(t)
	if _, ok := h.s.KeysUntil(); ok {
		t.Fatal("something is to be dropped")
	}
	h.time = 5
	h.ok(rotateCmd(1, "one", 0))
	h.time += second
	h.ok(rotateCmd(2, "two", ticketKey))
	h.time = 5 + keyRetentionUS - 1
	h.ok(&wire.Command{Kind: &wire.Command_Tick{Tick: &wire.Tick{}}})
	h.wantRing(" 0 1* 2*")
	if until, ok := h.s.KeysUntil(); !ok || until != h.time+1 {
		t.Fatalf("dropped at %d, %v", until, ok)
	}
	h.time++
	h.ok(&wire.Command{Kind: &wire.Command_Tick{Tick: &wire.Tick{}}})
	h.wantRing(" 1* 2*")
	if len(h.events) != 1 || h.events[0].Kind != EventKeys {
		t.Fatalf("events %v", h.events)
	}
	h.time += 100 * keyRetentionUS
	h.ok(rotateCmd(3, "three", 0))
	h.wantRing(" 1 2 3*")
	// The number goes on, whatever was dropped.
	h.time += 2 * keyRetentionUS
	h.ok(rotateCmd(4, "four", 0))
	h.wantRing(" 3 4*")
}

// The ring is bounded: the oldest that was replaced goes first, one in use never.
func TestKeysAreBounded(t *testing.T) {
	h := newHarness(t)
	h.ok(rotateCmd(1, "one", 0))
	for n := uint64(2); n < 20; n++ {
		h.ok(rotateCmd(n, fmt.Sprint(n), ticketKey))
	}
	h.wantRing(" 1* 13 14 15 16 17 18 19*")
}

func TestKeysBeforeTheCluster(t *testing.T) {
	h := &harness{t: t, s: New()}
	h.refuse(wire.Code_NOT_INITIALISED, rotateCmd(1, "one", 0))
}

// A snapshot brings the ring back, and no ring that no rotation could have made.
func TestKeysInASnapshot(t *testing.T) {
	h := newHarness(t)
	h.ok(rotateCmd(1, "one", 0))
	h.ok(rotateCmd(2, "two", sealKey))
	list := records(t, h.s.Snapshot())
	s, err := Load(source(list))
	if err != nil || s.Hash() != h.s.Hash() {
		t.Fatalf("%v: hash %x, was %x", err, s.Hash(), h.s.Hash())
	}
	if !proto.Equal(s.Cluster(), h.s.Cluster()) {
		t.Fatalf("%v came back", s.Cluster())
	}
	for name, change := range map[string]func(*wire.ClusterRow){
		"out of order":     func(r *wire.ClusterRow) { r.Keys[0], r.Keys[1] = r.Keys[1], r.Keys[0] },
		"no newest":        func(r *wire.ClusterRow) { r.Keys[2].ReplacedUs = 1 },
		"two newest":       func(r *wire.ClusterRow) { r.Keys[0].ReplacedUs = 0 },
		"no kinds":         func(r *wire.ClusterRow) { r.Keys[2].Kinds = 0 },
		"unknown kind":     func(r *wire.ClusterRow) { r.Keys[2].Kinds |= 8 },
		"no root":          func(r *wire.ClusterRow) { r.Keys[2].Root = nil },
		"generation 0":     func(r *wire.ClusterRow) { r.Keys = r.Keys[:1]; r.Keys[0].ReplacedUs = 0 },
		"root where there": func(r *wire.ClusterRow) { r.Keys[0].Root = r.Keys[1].Root },
		"too many": func(r *wire.ClusterRow) {
			for n := uint64(3); len(r.Keys) <= wire.KeyGenerationsMax; n++ {
				k := proto.Clone(r.Keys[1]).(*wire.KeyGeneration)
				k.Generation, k.ReplacedUs = n, 0
				r.Keys[len(r.Keys)-1].ReplacedUs = 1
				r.Keys = append(r.Keys, k)
			}
		},
	} {
		row := proto.Clone(h.s.Cluster()).(*wire.ClusterRow)
		change(row)
		if _, ok := ringOf(row.Keys); ok {
			t.Errorf("%s: loads", name)
		}
	}
}
