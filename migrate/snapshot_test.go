package migrate

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"slices"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/baton-cluster/baton/bulk"
	"github.com/baton-cluster/baton/wire"
)

func testState() (Binding, *wire.ConnectionState) {
	m := testMigration(Token{1})
	b := BindingOf(testCluster, m)
	return b, &wire.ConnectionState{
		Version: SnapshotVersion, ClusterId: testCluster, Migration: m.Id, Session: "s", SourceEpoch: 7, Target: "n2", Change: 99,
		Cursors: []*wire.Cursor{{Client: []byte("client"), Answered: 4, PushSent: 2}},
		Live:    []byte("live"), HasLive: true,
		Streams: []*wire.StreamState{{Client: []byte("client"), Stream: 1, Method: "m", Argument: []byte("a"), Acked: 5, Cookie: []byte("c"), Sent: 6, Unread: []byte("u")}},
		Connections: []*wire.Connection{{
			Client: []byte("client"), Identity: "node n3", Alpn: "baton/1", TlsVersion: 0x0304, CipherSuite: 0x1301,
			Transport: &wire.Transport{MinRttUs: 1, SmoothedRttUs: 2, LatestRttUs: 3, BytesSent: 4, BytesReceived: 5, PacketsLost: 6},
		}},
	}
}

var testKey = SealKey{Generation: 3, Key: bytes.Repeat([]byte{7}, SealKeyBytes)}

func mustSeal(t testing.TB, b Binding, cs *wire.ConnectionState) ([]byte, uint64) {
	t.Helper()
	sealed, digest, err := Seal(testKey, b, cs, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return sealed, digest
}

func TestSealUnseal(t *testing.T) {
	b, cs := testState()
	sealed, digest := mustSeal(t, b, cs)
	if bytes.Contains(sealed, cs.Live) {
		t.Error("the live state is readable")
	}
	got, gotDigest, err := Unseal(testKey, b, sealed)
	if err != nil {
		t.Fatal(err)
	}
	if generation, err := SealedWith(sealed); err != nil || generation != testKey.Generation {
		t.Errorf("sealed with generation %d, %v", generation, err)
	}
	if !proto.Equal(got, cs) || gotDigest != digest || digest != Digest(cs) {
		t.Errorf("came back as %v with digest %d, want %v with %d", got, gotDigest, cs, digest)
	}
	again, _ := mustSeal(t, b, cs)
	if bytes.Equal(again, sealed) {
		t.Error("two seals of one state are the same: the nonce is used twice")
	}
}

// Any bit flipped and any byte cut off is found.
func TestUnsealFindsDamage(t *testing.T) {
	b, cs := testState()
	sealed, _ := mustSeal(t, b, cs)
	for i := range sealed {
		for bit := range 8 {
			bad := slices.Clone(sealed)
			bad[i] ^= 1 << bit
			if _, _, err := Unseal(testKey, b, bad); wire.CodeOf(err) != wire.Code_SNAPSHOT_BAD {
				t.Fatalf("byte %d bit %d flipped: %v", i, bit, err)
			}
		}
		if _, _, err := Unseal(testKey, b, sealed[:i]); wire.CodeOf(err) != wire.Code_SNAPSHOT_BAD {
			t.Fatalf("cut at %d: %v", i, err)
		}
	}
	if _, _, err := Unseal(testKey, b, append(slices.Clone(sealed), 0)); wire.CodeOf(err) != wire.Code_SNAPSHOT_BAD {
		t.Errorf("a byte too many: %v", err)
	}
}

// A seal opens for its one use only.
func TestUnsealOtherUse(t *testing.T) {
	b, cs := testState()
	sealed, _ := mustSeal(t, b, cs)
	for name, change := range map[string]func(*Binding){
		"cluster":            func(b *Binding) { b.ClusterID = []byte("other") },
		"migration":          func(b *Binding) { b.Migration++ },
		"session":            func(b *Binding) { b.Session = "t" },
		"epoch":              func(b *Binding) { b.SourceEpoch++ },
		"target":             func(b *Binding) { b.Target = &wire.Owner{Worker: "n3", Incarnation: 2} },
		"target's next life": func(b *Binding) { b.Target = &wire.Owner{Worker: "n2", Incarnation: 3} },
	} {
		other := b
		change(&other)
		if _, _, err := Unseal(testKey, other, sealed); wire.CodeOf(err) != wire.Code_SNAPSHOT_BAD {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, _, err := Unseal(SealKey{Generation: 4, Key: bytes.Repeat([]byte{8}, SealKeyBytes)}, b, sealed); wire.CodeOf(err) != wire.Code_SNAPSHOT_BAD {
		t.Errorf("the next key: %v", err)
	}
	if _, _, err := Unseal(SealKey{Generation: 3, Key: bytes.Repeat([]byte{8}, SealKeyBytes)}, b, sealed); wire.CodeOf(err) != wire.Code_SNAPSHOT_BAD {
		t.Errorf("another key: %v", err)
	}
}

// What is sealed must agree with its binding, and with the limits, on both sides.
func TestSealRefusals(t *testing.T) {
	cases := map[string]struct {
		change func(*wire.ConnectionState)
		want   wire.Code
	}{
		"version":   {func(cs *wire.ConnectionState) { cs.Version = 2 }, wire.Code_SNAPSHOT_BAD},
		"cluster":   {func(cs *wire.ConnectionState) { cs.ClusterId = nil }, wire.Code_SNAPSHOT_BAD},
		"migration": {func(cs *wire.ConnectionState) { cs.Migration++ }, wire.Code_SNAPSHOT_BAD},
		"session":   {func(cs *wire.ConnectionState) { cs.Session = "" }, wire.Code_SNAPSHOT_BAD},
		"epoch":     {func(cs *wire.ConnectionState) { cs.SourceEpoch++ }, wire.Code_SNAPSHOT_BAD},
		"target":    {func(cs *wire.ConnectionState) { cs.Target = "n1" }, wire.Code_SNAPSHOT_BAD},
		"client":    {func(cs *wire.ConnectionState) { cs.Cursors[0].Client = make([]byte, 65) }, wire.Code_SNAPSHOT_BAD},
		"live":      {func(cs *wire.ConnectionState) { cs.Live = make([]byte, wire.LiveBytesMax+1) }, wire.Code_SNAPSHOT_TOO_LARGE},
		"cursors": {func(cs *wire.ConnectionState) {
			cs.Cursors = slices.Repeat(cs.Cursors, CursorsMax+1)
		}, wire.Code_SNAPSHOT_TOO_LARGE},
		"connections": {func(cs *wire.ConnectionState) {
			cs.Connections = slices.Repeat(cs.Connections, CursorsMax+1)
		}, wire.Code_SNAPSHOT_TOO_LARGE},
		"identity": {func(cs *wire.ConnectionState) {
			cs.Connections[0].Identity = string(make([]byte, connectionTextBytesMax+1))
		}, wire.Code_SNAPSHOT_BAD},
		"streams": {func(cs *wire.ConnectionState) {
			cs.Streams = slices.Repeat(cs.Streams, wire.StreamsPerSessionMax+1)
		}, wire.Code_SNAPSHOT_TOO_LARGE},
		"unread":   {func(cs *wire.ConnectionState) { cs.Streams[0].Unread = make([]byte, bulk.WindowBytes+1) }, wire.Code_SNAPSHOT_TOO_LARGE},
		"cookie":   {func(cs *wire.ConnectionState) { cs.Streams[0].Cookie = make([]byte, wire.StreamCookieBytesMax+1) }, wire.Code_SNAPSHOT_TOO_LARGE},
		"since":    {func(cs *wire.ConnectionState) { cs.StreamsSince = cs.SourceEpoch + 1 }, wire.Code_SNAPSHOT_BAD},
		"stream 0": {func(cs *wire.ConnectionState) { cs.Streams[0].Stream = 0 }, wire.Code_SNAPSHOT_BAD},
		"offset":   {func(cs *wire.ConnectionState) { cs.Streams[0].Sent = ^uint64(0) }, wire.Code_SNAPSHOT_BAD},
	}
	for name, c := range cases {
		b, cs := testState()
		c.change(cs)
		if _, _, err := Seal(testKey, b, cs, rand.Reader); wire.CodeOf(err) != c.want {
			t.Errorf("seal, %s: %v", name, err)
		}
		if _, _, err := Unseal(testKey, b, sealRaw(t, b, cs)); wire.CodeOf(err) != c.want {
			t.Errorf("unseal, %s: %v", name, err)
		}
	}
	b, cs := testState()
	cs.Live = make([]byte, wire.LiveBytesMax)
	cs.Cursors = slices.Repeat(cs.Cursors, CursorsMax)
	sealed, _ := mustSeal(t, b, cs)
	if _, _, err := Unseal(testKey, b, sealed); err != nil {
		t.Errorf("the largest allowed: %v", err)
	}
	if _, _, err := Unseal(testKey, b, make([]byte, SealedBytesMax+1)); wire.CodeOf(err) != wire.Code_SNAPSHOT_TOO_LARGE {
		t.Errorf("a giant: %v", err)
	}
	if _, _, err := Seal(SealKey{Key: testKey.Key[:16]}, b, cs, rand.Reader); wire.CodeOf(err) != wire.Code_INTERNAL {
		t.Errorf("a short key: %v", err)
	}
	if _, _, err := Seal(testKey, b, cs, bytes.NewReader(nil)); wire.CodeOf(err) != wire.Code_INTERNAL {
		t.Errorf("no randomness: %v", err)
	}
}

// sealRaw seals what Seal would refuse.
func sealRaw(t testing.TB, b Binding, cs *wire.ConnectionState) []byte {
	t.Helper()
	plain, err := proto.Marshal(cs)
	if err != nil {
		t.Fatal(err)
	}
	return sealBytes(t, b, plain)
}

func sealBytes(t testing.TB, b Binding, plain []byte) []byte {
	t.Helper()
	aead, err := newSealer(testKey.Key)
	if err != nil {
		t.Fatal(err)
	}
	out := make([]byte, sealHeadSize+sealNonceSize)
	out[0] = sealFormat
	binary.BigEndian.PutUint64(out[1:], testKey.Generation)
	return aead.Seal(out, out[sealHeadSize:], plain, sealData(testKey.Generation, b))
}

// Each field counts in the digest.
func TestDigestCoversFields(t *testing.T) {
	_, cs := testState()
	base := Digest(cs)
	seen := map[uint64]string{base: "unchanged"}
	for name, change := range map[string]func(*wire.ConnectionState){
		"version":   func(cs *wire.ConnectionState) { cs.Version++ },
		"cluster":   func(cs *wire.ConnectionState) { cs.ClusterId = []byte("x") },
		"migration": func(cs *wire.ConnectionState) { cs.Migration++ },
		"session":   func(cs *wire.ConnectionState) { cs.Session += "x" },
		"epoch":     func(cs *wire.ConnectionState) { cs.SourceEpoch++ },
		"target":    func(cs *wire.ConnectionState) { cs.Target += "x" },
		"change":    func(cs *wire.ConnectionState) { cs.Change++ },
		"client":    func(cs *wire.ConnectionState) { cs.Cursors[0].Client = []byte("x") },
		"answered":  func(cs *wire.ConnectionState) { cs.Cursors[0].Answered++ },
		"push sent": func(cs *wire.ConnectionState) { cs.Cursors[0].PushSent++ },
		"cursors":   func(cs *wire.ConnectionState) { cs.Cursors = nil },
		"live":      func(cs *wire.ConnectionState) { cs.Live = []byte("LIVE") },
		"streams":   func(cs *wire.ConnectionState) { cs.Streams = nil },
		"since":     func(cs *wire.ConnectionState) { cs.StreamsSince++ },
		"s client":  func(cs *wire.ConnectionState) { cs.Streams[0].Client = []byte("x") },
		"stream":    func(cs *wire.ConnectionState) { cs.Streams[0].Stream++ },
		"method":    func(cs *wire.ConnectionState) { cs.Streams[0].Method += "x" },
		"argument":  func(cs *wire.ConnectionState) { cs.Streams[0].Argument = []byte("x") },
		"acked":     func(cs *wire.ConnectionState) { cs.Streams[0].Acked++ },
		"cookie":    func(cs *wire.ConnectionState) { cs.Streams[0].Cookie = []byte("x") },
		"s sent":    func(cs *wire.ConnectionState) { cs.Streams[0].Sent++ },
		"unread":    func(cs *wire.ConnectionState) { cs.Streams[0].Unread = []byte("x") },
		"ended":     func(cs *wire.ConnectionState) { cs.Streams[0].Ended = true },
		"code":      func(cs *wire.ConnectionState) { cs.Streams[0].Code++ },
		"message":   func(cs *wire.ConnectionState) { cs.Streams[0].Message = "x" },
		"has live":  func(cs *wire.ConnectionState) { cs.HasLive = false },
		"whose":     func(cs *wire.ConnectionState) { cs.Connections[0].Client = []byte("x") },
		"identity":  func(cs *wire.ConnectionState) { cs.Connections[0].Identity = "x" },
		"alpn":      func(cs *wire.ConnectionState) { cs.Connections[0].Alpn = "x" },
		"tls":       func(cs *wire.ConnectionState) { cs.Connections[0].TlsVersion++ },
		"cipher":    func(cs *wire.ConnectionState) { cs.Connections[0].CipherSuite++ },
		"conns":     func(cs *wire.ConnectionState) { cs.Connections = nil },
		"min":       func(cs *wire.ConnectionState) { cs.Connections[0].Transport.MinRttUs++ },
		"smoothed":  func(cs *wire.ConnectionState) { cs.Connections[0].Transport.SmoothedRttUs++ },
		"latest":    func(cs *wire.ConnectionState) { cs.Connections[0].Transport.LatestRttUs++ },
		"sent":      func(cs *wire.ConnectionState) { cs.Connections[0].Transport.BytesSent++ },
		"received":  func(cs *wire.ConnectionState) { cs.Connections[0].Transport.BytesReceived++ },
		"lost":      func(cs *wire.ConnectionState) { cs.Connections[0].Transport.PacketsLost++ },
	} {
		_, cs := testState()
		change(cs)
		d := Digest(cs)
		if was, dup := seen[d]; dup {
			t.Errorf("%s has the digest of %s", name, was)
		}
		seen[d] = name
	}
	fields := cs.ProtoReflect().Descriptor().Fields().Len() + (&wire.Cursor{}).ProtoReflect().Descriptor().Fields().Len() +
		(&wire.StreamState{}).ProtoReflect().Descriptor().Fields().Len() +
		(&wire.Connection{}).ProtoReflect().Descriptor().Fields().Len() +
		(&wire.Transport{}).ProtoReflect().Descriptor().Fields().Len()
	// Each field of the five messages, transport only through its own fields,
	// and the unchanged one.
	if want := fields - 1 + 1; len(seen) != want {
		t.Errorf("%d digests for %d fields: a new field is in no digest", len(seen), want)
	}
}

// Whatever the bytes, Unseal refuses or returns what is within bounds.
func FuzzUnseal(f *testing.F) {
	b, cs := testState()
	sealed, _ := mustSeal(f, b, cs)
	f.Add(sealed)
	f.Add(sealed[:40])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		if got, digest, err := Unseal(testKey, b, data); err == nil {
			if checkState(b, got) != nil || digest != Digest(got) {
				t.Errorf("accepted %v", got)
			}
		} else if code := wire.CodeOf(err); code != wire.Code_SNAPSHOT_BAD && code != wire.Code_SNAPSHOT_TOO_LARGE {
			t.Errorf("refused with %v", err)
		}
	})
}

// The same behind a good seal: a node that is gone mad has the key.
func FuzzUnsealPlaintext(f *testing.F) {
	b, cs := testState()
	plain, err := proto.Marshal(cs)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(plain)
	f.Add(bytes.Repeat([]byte{0x42, 0}, CursorsMax+1))                // empty cursors
	f.Add(bytes.Repeat([]byte{0x7a, 0}, CursorsMax+1))                // empty connections
	f.Add(bytes.Repeat([]byte{0x62, 0}, wire.StreamsPerSessionMax+1)) // empty streams
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, plain []byte) {
		got, _, err := Unseal(testKey, b, sealBytes(t, b, plain))
		if err == nil && checkState(b, got) != nil {
			t.Errorf("accepted %v", got)
		}
		if err != nil && got != nil {
			t.Error("a state and an error")
		}
	})
}

func BenchmarkSealUnseal(b *testing.B) {
	for _, size := range []int{0, 64 << 10, 1 << 20} {
		b.Run(map[int]string{0: "empty", 64 << 10: "64KiB", 1 << 20: "1MiB"}[size], func(b *testing.B) {
			bind, cs := testState()
			cs.Live = make([]byte, size)
			b.SetBytes(int64(size))
			for b.Loop() {
				sealed, _ := mustSeal(b, bind, cs)
				if _, _, err := Unseal(testKey, bind, sealed); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
