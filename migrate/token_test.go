package migrate

import (
	"bytes"
	"crypto/rand"
	"testing"

	"pgregory.net/rapid"

	"github.com/baton-cluster/baton/wire"
)

var (
	testCluster = []byte("0123456789abcdef")
	testSource  = &wire.Owner{Worker: "n1", Incarnation: 1}
	testTarget  = &wire.Owner{Worker: "n2", Incarnation: 2}
)

func testMigration(tok Token) *wire.Migration {
	return &wire.Migration{
		Id: 4096, Session: "s", Source: testSource, Target: testTarget, SourceEpoch: 7,
		TokenHash:  Hash(tok, testCluster, "s", 7, testSource, testTarget),
		DeadlineUs: 1000, Phase: wire.Phase_PHASE_BEGUN,
	}
}

func mustMint(t testing.TB) Token {
	t.Helper()
	tok, err := Mint(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

func TestTokenRefusals(t *testing.T) {
	tok := mustMint(t)
	other := mustMint(t)
	cases := map[string]struct {
		change func(tok *Token, b *Binding, m **wire.Migration, nowUS *uint64)
		want   wire.Code
	}{
		"good":              {nil, wire.Code_OK},
		"forged":            {func(k *Token, _ *Binding, _ **wire.Migration, _ *uint64) { *k = other }, wire.Code_TOKEN_UNKNOWN},
		"all zeros":         {func(k *Token, _ *Binding, _ **wire.Migration, _ *uint64) { *k = Token{} }, wire.Code_TOKEN_UNKNOWN},
		"no such migration": {func(_ *Token, _ *Binding, m **wire.Migration, _ *uint64) { *m = nil }, wire.Code_TOKEN_UNKNOWN},
		"replayed at the next migration": {func(_ *Token, _ *Binding, m **wire.Migration, _ *uint64) {
			*m = testMigration(other)
		}, wire.Code_TOKEN_UNKNOWN},
		"record without a hash": {func(_ *Token, _ *Binding, m **wire.Migration, _ *uint64) { (*m).TokenHash = nil }, wire.Code_TOKEN_UNKNOWN},
		"session":               {func(_ *Token, b *Binding, _ **wire.Migration, _ *uint64) { b.Session = "S" }, wire.Code_TOKEN_WRONG_SESSION},
		"epoch":                 {func(_ *Token, b *Binding, _ **wire.Migration, _ *uint64) { b.SourceEpoch = 8 }, wire.Code_TOKEN_WRONG_EPOCH},
		"source": {func(_ *Token, b *Binding, _ **wire.Migration, _ *uint64) {
			b.Source = &wire.Owner{Worker: "n3", Incarnation: 1}
		}, wire.Code_TOKEN_WRONG_SOURCE},
		"source restarted": {func(_ *Token, b *Binding, _ **wire.Migration, _ *uint64) {
			b.Source = &wire.Owner{Worker: "n1", Incarnation: 9}
		}, wire.Code_TOKEN_WRONG_SOURCE},
		"target": {func(_ *Token, b *Binding, _ **wire.Migration, _ *uint64) {
			b.Target = &wire.Owner{Worker: "n3", Incarnation: 2}
		}, wire.Code_TOKEN_WRONG_TARGET},
		"target restarted": {func(_ *Token, b *Binding, _ **wire.Migration, _ *uint64) {
			b.Target = &wire.Owner{Worker: "n2", Incarnation: 9}
		}, wire.Code_TOKEN_WRONG_TARGET},
		"cluster": {func(_ *Token, b *Binding, _ **wire.Migration, _ *uint64) { b.ClusterID = []byte("x") }, wire.Code_TOKEN_WRONG_CLUSTER},
		"used": {func(_ *Token, _ *Binding, m **wire.Migration, _ *uint64) {
			(*m).Phase = wire.Phase_PHASE_PIVOTED
		}, wire.Code_TOKEN_USED},
		"used and ended": {func(_ *Token, _ *Binding, m **wire.Migration, _ *uint64) {
			(*m).Phase = wire.Phase_PHASE_COMPLETED
		}, wire.Code_TOKEN_USED},
		"revoked": {func(_ *Token, _ *Binding, m **wire.Migration, _ *uint64) {
			(*m).Phase = wire.Phase_PHASE_ABORTED
		}, wire.Code_TOKEN_REVOKED},
		"expired": {func(_ *Token, _ *Binding, _ **wire.Migration, now *uint64) { *now = 1000 }, wire.Code_TOKEN_EXPIRED},
		"not begun": {func(_ *Token, _ *Binding, m **wire.Migration, _ *uint64) {
			(*m).Phase = wire.Phase_PHASE_UNSPECIFIED
		}, wire.Code_TOKEN_UNKNOWN},
		"of another session, and used": {func(_ *Token, b *Binding, m **wire.Migration, _ *uint64) {
			b.Session, (*m).Phase = "t", wire.Phase_PHASE_PIVOTED
		}, wire.Code_TOKEN_WRONG_SESSION},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			k, m, now := tok, testMigration(tok), uint64(999)
			b := BindingOf(testCluster, m)
			if c.change != nil {
				c.change(&k, &b, &m, &now)
			}
			if got := wire.CodeOf(Check(k, b, m, now)); got != c.want {
				t.Errorf("got %v, want %v", got, c.want)
			}
		})
	}
}

// The token of one binding never passes for another's.
func TestTokenBinding(t *testing.T) {
	owner := rapid.Custom(func(t *rapid.T) *wire.Owner {
		return &wire.Owner{Worker: rapid.StringN(0, 3, 3).Draw(t, "worker"), Incarnation: rapid.Uint64Range(0, 2).Draw(t, "incarnation")}
	})
	bind := rapid.Custom(func(t *rapid.T) Binding {
		return Binding{
			ClusterID: rapid.SliceOfN(rapid.ByteRange(0, 2), 0, 2).Draw(t, "cluster"), Session: rapid.StringN(0, 3, 3).Draw(t, "session"),
			SourceEpoch: rapid.Uint64Range(0, 2).Draw(t, "epoch"), Source: owner.Draw(t, "source"), Target: owner.Draw(t, "target"),
		}
	})
	tok := mustMint(t)
	rapid.Check(t, func(t *rapid.T) {
		a, b := bind.Draw(t, "a"), bind.Draw(t, "b")
		m := &wire.Migration{
			Session: a.Session, Source: a.Source, Target: a.Target, SourceEpoch: a.SourceEpoch,
			TokenHash:  Hash(tok, a.ClusterID, a.Session, a.SourceEpoch, a.Source, a.Target),
			DeadlineUs: 1, Phase: wire.Phase_PHASE_BEGUN,
		}
		same := bytes.Equal(a.ClusterID, b.ClusterID) && a.Session == b.Session && a.SourceEpoch == b.SourceEpoch &&
			equalOwner(a.Source, b.Source)&equalOwner(a.Target, b.Target) == 1
		if err := Check(tok, b, m, 0); (err == nil) != same {
			t.Fatalf("same %v: %v", same, err)
		}
	})
}

func TestMintNeedsRandomness(t *testing.T) {
	if _, err := Mint(bytes.NewReader(make([]byte, TokenBytes-1))); wire.CodeOf(err) != wire.Code_INTERNAL {
		t.Errorf("got %v", err)
	}
	if mustMint(t) == mustMint(t) {
		t.Error("two tokens are the same")
	}
}

func TestTokenStates(t *testing.T) {
	m := testMigration(Token{})
	for want, phase := range map[TokenState]wire.Phase{
		TokenGenerated: wire.Phase_PHASE_UNSPECIFIED, TokenActive: wire.Phase_PHASE_BEGUN,
		TokenUsed: wire.Phase_PHASE_PIVOTED, TokenRevoked: wire.Phase_PHASE_ABORTED,
	} {
		if m.Phase = phase; StateOfToken(m, 1) != want {
			t.Errorf("%v: %v", phase, StateOfToken(m, 1))
		}
	}
	if m.Phase = wire.Phase_PHASE_BEGUN; StateOfToken(m, m.DeadlineUs) != TokenExpired {
		t.Error("does not expire at its deadline")
	}
	if StateOfToken(nil, 0) != TokenGenerated {
		t.Error("without a migration it is more than generated")
	}
}

func BenchmarkTokenMintAndCheck(b *testing.B) {
	for b.Loop() {
		tok := mustMint(b)
		m := testMigration(tok)
		if err := Check(tok, BindingOf(testCluster, m), m, 1); err != nil {
			b.Fatal(err)
		}
	}
}
