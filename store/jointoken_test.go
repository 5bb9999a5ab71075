package store

import (
	"bytes"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/baton-cluster/baton/wire"
)

// hash32 is a hash, and id16 an id, that can be told apart.
func hash32(b byte) []byte { return bytes.Repeat([]byte{b}, wire.HashBytes) }
func id16(b byte) []byte   { return bytes.Repeat([]byte{b}, wire.IDBytes) }

func makeTokenCmd(id byte, name string, life uint64) *wire.Command {
	return &wire.Command{Kind: &wire.Command_MakeJoinToken{MakeJoinToken: &wire.MakeJoinToken{
		Id: id16(id), SecretHash: hash32(id), LifeUs: life, Name: name, By: "by",
	}}}
}

func useTokenCmd(id byte, name string, key byte) *wire.Command {
	return &wire.Command{Kind: &wire.Command_UseJoinToken{UseJoinToken: &wire.UseJoinToken{
		Id: id16(id), SecretHash: hash32(id), Name: name, KeyHash: hash32(key),
	}}}
}

func revokeTokenCmd(id byte) *wire.Command {
	return &wire.Command{Kind: &wire.Command_RevokeJoinToken{RevokeJoinToken: &wire.RevokeJoinToken{Id: id16(id)}}}
}

// A token is good for one node, which may ask again.
func TestJoinTokenIsUsedOnce(t *testing.T) {
	h := newHarness(t)
	h.ok(makeTokenCmd(1, "", second))
	h.duplicate(makeTokenCmd(1, "", second))
	h.refuse(wire.Code_BAD_REQUEST, with(makeTokenCmd(1, "", second), func(c *wire.Command) { c.GetMakeJoinToken().SecretHash = hash32(7) }))
	h.ok(useTokenCmd(1, "n4", 'k'))
	h.duplicate(useTokenCmd(1, "n4", 'k'))
	h.refuse(wire.Code_TOKEN_USED, useTokenCmd(1, "n4", 'x'))
	h.refuse(wire.Code_TOKEN_USED, useTokenCmd(1, "n5", 'k'))
	h.refuse(wire.Code_TOKEN_USED, revokeTokenCmd(1))
	h.time += second
	h.refuse(wire.Code_TOKEN_USED, useTokenCmd(1, "n4", 'k'))
}

func TestJoinTokenRefusals(t *testing.T) {
	h := newHarness(t)
	name := h.s.Worker("w1").GetName()
	h.ok(makeTokenCmd(1, "", second))
	h.refuse(wire.Code_TOKEN_UNKNOWN, useTokenCmd(2, "n4", 'k'))
	h.refuse(wire.Code_TOKEN_UNKNOWN, with(useTokenCmd(1, "n4", 'k'), func(c *wire.Command) { c.GetUseJoinToken().SecretHash = hash32(9) }))
	h.refuse(wire.Code_TOKEN_UNKNOWN, revokeTokenCmd(2))
	h.refuse(wire.Code_NAME_IN_USE, useTokenCmd(1, name, 'k'))
	h.refuse(wire.Code_BAD_REQUEST, useTokenCmd(1, "", 'k'))
	h.refuse(wire.Code_BAD_REQUEST, with(useTokenCmd(1, "n4", 'k'), func(c *wire.Command) { c.GetUseJoinToken().KeyHash = nil }))

	h.ok(makeTokenCmd(2, "n4", second))
	h.refuse(wire.Code_TOKEN_WRONG_NAME, useTokenCmd(2, "n5", 'k'))
	h.ok(useTokenCmd(1, "n4", 'k'))
	h.refuse(wire.Code_NAME_IN_USE, useTokenCmd(2, "n4", 'x'))

	h.ok(makeTokenCmd(3, "", second))
	h.ok(revokeTokenCmd(3))
	h.duplicate(revokeTokenCmd(3))
	h.refuse(wire.Code_TOKEN_REVOKED, useTokenCmd(3, "n6", 'k'))

	// The name of one that is lost is free for its successor.
	h.ok(fenceCmd(h.owner("w1")))
	h.ok(makeTokenCmd(4, name, second))
	h.ok(useTokenCmd(4, name, 'k'))

	for what, bad := range map[string]func(*wire.MakeJoinToken){
		"short id":     func(c *wire.MakeJoinToken) { c.Id = []byte("short") },
		"no hash":      func(c *wire.MakeJoinToken) { c.SecretHash = nil },
		"no life":      func(c *wire.MakeJoinToken) { c.LifeUs = 0 },
		"too long":     func(c *wire.MakeJoinToken) { c.LifeUs = wire.JoinTokenLifeUSMax + 1 },
		"endless name": func(c *wire.MakeJoinToken) { c.Name = string(make([]byte, labelBytesMax+1)) },
	} {
		before := h.s.Hash()
		h.refuse(wire.Code_BAD_REQUEST, with(makeTokenCmd(5, "", second), func(c *wire.Command) { bad(c.GetMakeJoinToken()) }))
		if len(h.s.JoinTokens()) != 4 {
			t.Fatalf("%s: %x became %v", what, before, h.s.JoinTokens())
		}
	}
}

// In log time a token ends on the instant, and is remembered for a day, to say so.
func TestJoinTokenEnds(t *testing.T) {
	h := newHarness(t)
	h.ok(makeTokenCmd(1, "", second))
	if at, ok := h.s.NextDeadline(); !ok || at != h.s.TimeUS()+second {
		t.Fatalf("the next deadline is %d, %v", at, ok)
	}
	h.time = h.s.TimeUS() + second
	h.refuse(wire.Code_TOKEN_EXPIRED, useTokenCmd(1, "n4", 'k'))
	if _, ok := h.s.NextDeadline(); ok {
		t.Fatal("an ended token keeps the time going")
	}
	h.time += wire.JoinTokenMemoryUS
	h.refuse(wire.Code_TOKEN_UNKNOWN, useTokenCmd(1, "n4", 'k'))
	if n := len(h.s.JoinTokens()); n != 0 {
		t.Fatalf("%d tokens are remembered", n)
	}
}

func TestJoinTokensAreBounded(t *testing.T) {
	h := newHarness(t)
	for n := range wire.JoinTokensMax {
		h.ok(with(makeTokenCmd(1, "", second), func(c *wire.Command) { c.GetMakeJoinToken().Id[0] = byte(n) }))
	}
	h.refuse(wire.Code_TOO_MANY, makeTokenCmd(2, "", second))
}

// A snapshot brings tokens back, and none that no command could have made.
func TestJoinTokensInASnapshot(t *testing.T) {
	h := newHarness(t)
	h.ok(makeTokenCmd(1, "n4", second))
	h.ok(useTokenCmd(1, "n4", 'k'))
	h.ok(makeTokenCmd(2, "", second))
	s, err := Load(source(records(t, h.s.Snapshot())))
	if err != nil || s.Hash() != h.s.Hash() {
		t.Fatalf("%v: hash %x, was %x", err, s.Hash(), h.s.Hash())
	}
	s.Apply(h.index+1, &wire.Entry{Commands: []*wire.Command{useTokenCmd(2, "n5", 'k')}})
	if res, _ := s.Apply(h.index+2, &wire.Entry{Commands: []*wire.Command{useTokenCmd(1, "n6", 'k')}}); res[0].Code != wire.Code_TOKEN_USED {
		t.Fatalf("after a snapshot: %v", res)
	}
	for name, change := range map[string]func(l []*wire.JoinToken){
		"out of order":    func(l []*wire.JoinToken) { l[0], l[1] = l[1], l[0] },
		"short id":        func(l []*wire.JoinToken) { l[1].Id = l[1].Id[:3] },
		"no hash":         func(l []*wire.JoinToken) { l[1].SecretHash = nil },
		"used by nobody":  func(l []*wire.JoinToken) { l[0].UsedBy = "" },
		"used for no key": func(l []*wire.JoinToken) { l[0].UsedKey = nil },
		"not used":        func(l []*wire.JoinToken) { l[0].UsedUs = 0 },
		"a key, not used": func(l []*wire.JoinToken) { l[1].UsedKey = hash32(1) },
		"used, revoked":   func(l []*wire.JoinToken) { l[0].Revoked = true },
	} {
		row := proto.Clone(h.s.Cluster()).(*wire.ClusterRow)
		change(row.JoinTokens)
		if _, ok := joinTokensOf(row.JoinTokens); ok {
			t.Errorf("%s: loads", name)
		}
	}
	if _, ok := joinTokensOf(make([]*wire.JoinToken, wire.JoinTokensMax+1)); ok {
		t.Error("too many load")
	}
}
