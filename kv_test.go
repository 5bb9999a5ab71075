package baton

import (
	"bytes"
	"testing"

	"github.com/baton-cluster/baton/wire"
)

func TestFieldsReverseJoin(t *testing.T) {
	in := [][]byte{[]byte("key"), {}, bytes.Repeat([]byte("v"), 300)}
	out, err := fields(join(in...), len(in))
	if err != nil {
		t.Fatal(err)
	}
	for i := range in {
		if !bytes.Equal(in[i], out[i]) {
			t.Errorf("field %d: %q, want %q", i, out[i], in[i])
		}
	}
	for name, p := range map[string][]byte{
		"nothing": nil, "too few": join([]byte("a")), "too many": join([]byte("a"), []byte("b"), []byte("c")),
		"length past the end": {200, 1, 'x'}, "endless length": bytes.Repeat([]byte{0xff}, 11),
	} {
		if _, err := fields(p, 2); CodeOf(err) != wire.Code_BAD_REQUEST {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzFields(f *testing.F) {
	f.Add(join([]byte("k"), []byte("v")), 2)
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1}, 1)
	f.Fuzz(func(t *testing.T, p []byte, n int) {
		if n < 0 || n > 8 {
			return
		}
		got, err := fields(p, n)
		if err != nil {
			return
		}
		total := 0
		for _, g := range got {
			total += len(g)
		}
		if len(got) != n || total > len(p) {
			t.Fatalf("%d fields of %d bytes out of %d", len(got), total, len(p))
		}
	})
}

// checkServings must see what it is for.
func TestVerifySeesTwoOwnersAndOverlaps(t *testing.T) {
	for name, tc := range map[string]struct {
		servings              []Serving
		doubleOwned, overlaps int
	}{
		"clean": {[]Serving{
			{Session: "s", Epoch: 1, Worker: "n1", First: 10, Last: 20},
			{Session: "s", Epoch: 2, Worker: "n2", First: 21, Last: 30},
			{Session: "t", Epoch: 1, Worker: "n2", First: 5, Last: 40},
		}, 0, 0},
		"two owners of one epoch": {[]Serving{
			{Session: "s", Epoch: 1, Worker: "n1", First: 10, Last: 20},
			{Session: "s", Epoch: 1, Worker: "n2", First: 21, Last: 30},
		}, 1, 0},
		"two incarnations of one epoch": {[]Serving{
			{Session: "s", Epoch: 1, Worker: "n1", Incarnation: 3, First: 10, Last: 20},
			{Session: "s", Epoch: 1, Worker: "n1", Incarnation: 4, First: 21, Last: 30},
		}, 1, 0},
		"an earlier record of the old epoch reaches further": {[]Serving{
			{Session: "s", Epoch: 1, Worker: "n1", First: 10, Last: 60},
			{Session: "s", Epoch: 1, Worker: "n1", First: 15, Last: 20},
			{Session: "s", Epoch: 2, Worker: "n2", First: 30, Last: 70},
		}, 0, 1},
		"the epoch before the last served on": {[]Serving{
			{Session: "s", Epoch: 1, Worker: "n1", First: 10, Last: 60},
			{Session: "s", Epoch: 2, Worker: "n2", First: 61, Last: 61},
			{Session: "s", Epoch: 3, Worker: "n3", First: 55, Last: 70},
		}, 0, 1},
		"the old epoch served on": {[]Serving{
			{Session: "s", Epoch: 1, Worker: "n1", First: 10, Last: 25},
			{Session: "s", Epoch: 2, Worker: "n2", First: 21, Last: 30},
		}, 0, 1},
	} {
		var v Verdict
		checkServings(&v, tc.servings)
		if v.DoubleOwned != tc.doubleOwned || v.Overlaps != tc.overlaps || len(v.Violations) != tc.doubleOwned+tc.overlaps {
			t.Errorf("%s: %+v", name, v)
		}
	}
}
