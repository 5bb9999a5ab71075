package migrate

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"io"

	"github.com/baton-cluster/baton/wire"
)

// TokenBytes is the size of a token: 256 random bits cannot be guessed.
const TokenBytes = 32

// HashBytes is the size of a token's hash: one half proves possession, the
// other binds it. Two halves let a refusal say which of the two is wrong, and
// only to someone who has the token.
const HashBytes = 2 * sha256.Size

// Token lets its holder warm a connection to a migration's target. It travels
// to the client through the source; only its hash is in the log.
type Token [TokenBytes]byte

// Purposes keep a hash made for one use from passing for another's.
const (
	purposePossess = "baton migration token 1: possession"
	purposeBind    = "baton migration token 1: binding"
)

// Mint makes a token out of rand. The error is rand's, as INTERNAL.
func Mint(rand io.Reader) (Token, error) {
	var t Token
	if _, err := io.ReadFull(rand, t[:]); err != nil {
		return Token{}, wire.Errorf(wire.Code_INTERNAL, "no randomness for a migration token: %v", err)
	}
	return t, nil
}

// Hash is what the log keeps of a token: HashBytes bytes, bound to everything
// that the arguments name.
func Hash(tok Token, clusterID []byte, session string, sourceEpoch uint64, source, target *wire.Owner) []byte {
	buf := make([]byte, 0, 512)
	buf = append(buf, purposePossess...)
	buf = append(buf, tok[:]...)
	possess := sha256.Sum256(buf)

	buf = append(buf[:0], purposeBind...)
	buf = append(buf, tok[:]...)
	buf = appendBytes(buf, clusterID)
	buf = appendString(buf, session)
	buf = binary.BigEndian.AppendUint64(buf, sourceEpoch)
	buf = appendOwner(buf, source)
	buf = appendOwner(buf, target)
	bind := sha256.Sum256(buf)
	return append(possess[:], bind[:]...)
}

// TokenState is where a token is in its life.
type TokenState uint8

const (
	TokenGenerated TokenState = iota // minted, its migration not begun
	TokenActive                      // its migration is begun
	TokenUsed                        // consumed by the pivot
	TokenExpired                     // past its migration's deadline
	TokenRevoked                     // its migration was aborted
)

// StateOfToken is the state of the token of migration m at log time nowUS; m is
// nil where the log knows of none.
func StateOfToken(m *wire.Migration, nowUS uint64) TokenState {
	switch m.GetPhase() {
	case wire.Phase_PHASE_UNSPECIFIED:
		return TokenGenerated
	case wire.Phase_PHASE_BEGUN:
		if nowUS >= m.GetDeadlineUs() {
			return TokenExpired
		}
		return TokenActive
	case wire.Phase_PHASE_PIVOTED, wire.Phase_PHASE_COMPLETED:
		return TokenUsed
	}
	return TokenRevoked
}

// Check decides whether tok, presented for the use that b names, is the active
// token of migration m at log time nowUS (m nil: the log knows of none; the
// binding's Migration is not looked at, m is what the presenter named). Nothing
// is consumed: the pivot does that.
//
// Refusals, in this order: TOKEN_UNKNOWN (forged, or of another migration),
// TOKEN_WRONG_SESSION, TOKEN_WRONG_EPOCH, TOKEN_WRONG_SOURCE,
// TOKEN_WRONG_TARGET, TOKEN_WRONG_CLUSTER, TOKEN_USED, TOKEN_REVOKED,
// TOKEN_EXPIRED. All comparisons are made, each in constant time, before any is
// looked at; who does not have the token learns nothing but that.
func Check(tok Token, b Binding, m *wire.Migration, nowUS uint64) error {
	got := Hash(tok, b.ClusterID, b.Session, b.SourceEpoch, b.Source, b.Target)
	want := m.GetTokenHash()
	if len(want) != HashBytes {
		want = make([]byte, HashBytes) // no hash is all zeros
	}
	possess := subtle.ConstantTimeCompare(got[:sha256.Size], want[:sha256.Size])
	bound := subtle.ConstantTimeCompare(got[sha256.Size:], want[sha256.Size:])
	session := subtle.ConstantTimeCompare([]byte(b.Session), []byte(m.GetSession()))
	epoch := equalUint(b.SourceEpoch, m.GetSourceEpoch())
	source := equalOwner(b.Source, m.GetSource())
	target := equalOwner(b.Target, m.GetTarget())

	switch {
	case m == nil || possess != 1:
		return wire.Errorf(wire.Code_TOKEN_UNKNOWN, "no migration under way has this token; attach with the session's secret")
	case session != 1:
		return wire.Errorf(wire.Code_TOKEN_WRONG_SESSION, "the token was made for another session")
	case epoch != 1:
		return wire.Errorf(wire.Code_TOKEN_WRONG_EPOCH, "the token was made for another epoch of the session; attach with its secret")
	case source != 1:
		return wire.Errorf(wire.Code_TOKEN_WRONG_SOURCE, "the token was made for a move from another node; attach with the session's secret")
	case target != 1:
		return wire.Errorf(wire.Code_TOKEN_WRONG_TARGET, "the token was made for a move to another node, or to an earlier start of this one; attach with the session's secret")
	case bound != 1: // everything else agrees: what is left is the cluster
		return wire.Errorf(wire.Code_TOKEN_WRONG_CLUSTER, "the token was made in another cluster")
	}
	switch StateOfToken(m, nowUS) {
	case TokenActive:
		return nil
	case TokenUsed:
		return wire.Errorf(wire.Code_TOKEN_USED, "the token was used: the session has moved; attach with its secret")
	case TokenExpired:
		return wire.Errorf(wire.Code_TOKEN_EXPIRED, "the token has expired with its migration; stay with the session's present owner")
	case TokenRevoked:
		return wire.Errorf(wire.Code_TOKEN_REVOKED, "the token was revoked: the move was called off; stay with the session's present owner")
	}
	return wire.Errorf(wire.Code_TOKEN_UNKNOWN, "the token's migration has not begun")
}

func equalUint(a, b uint64) int {
	var x, y [8]byte
	binary.BigEndian.PutUint64(x[:], a)
	binary.BigEndian.PutUint64(y[:], b)
	return subtle.ConstantTimeCompare(x[:], y[:])
}

func equalOwner(a, b *wire.Owner) int {
	return subtle.ConstantTimeCompare([]byte(a.GetWorker()), []byte(b.GetWorker())) &
		equalUint(a.GetIncarnation(), b.GetIncarnation())
}
