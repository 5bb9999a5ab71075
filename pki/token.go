package pki

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"strings"

	"github.com/baton-cluster/baton/wire"
)

// JoinToken lets one node join that has no certificate. It names the cluster and
// its authority, so that the node knows whom it tells the secret.
type JoinToken struct {
	Cluster   [wire.IDBytes]byte
	Authority [wire.HashBytes]byte // SHA-256 of the authority's certificate
	ID        [wire.IDBytes]byte   // not secret
	Secret    [32]byte
}

const (
	// tokenPrefix tells people and scanners for leaked secrets what it is; the
	// number rises with the format.
	tokenPrefix = "baton-join-1."
	// tokenSumBytes of a SHA-256 follow, so that a token cut short is told from a
	// forged one.
	tokenSumBytes = 4
	tokenBytes    = 2*wire.IDBytes + wire.HashBytes + 32
)

// NewJoinToken draws a token for the cluster of that authority. The cluster's id
// is to be filled in.
func (id *Identity) NewJoinToken() JoinToken {
	t := JoinToken{Authority: [wire.HashBytes]byte(id.Fingerprint())}
	rand.Read(t.ID[:])
	rand.Read(t.Secret[:])
	return t
}

// SecretHash is what the cluster keeps of the secret. The secret is 256 random
// bits, so that a plain hash will do.
func (t JoinToken) SecretHash() []byte { return SecretHash(t.Secret[:]) }

// SecretHash is that of a secret that was shown.
func SecretHash(secret []byte) []byte {
	sum := sha256.Sum256(secret)
	return sum[:]
}

// IDText is the id as people see it.
func (t JoinToken) IDText() string { return hex.EncodeToString(t.ID[:]) }

// Text is the token as it is handed over. It is a secret.
func (t JoinToken) Text() string {
	b := t.bytes()
	sum := sha256.Sum256(b)
	return tokenPrefix + base64.RawURLEncoding.EncodeToString(append(b, sum[:tokenSumBytes]...))
}

// String keeps the secret out of logs.
func (t JoinToken) String() string { return "join token " + t.IDText() }

func (t JoinToken) bytes() []byte {
	return bytes.Join([][]byte{t.Cluster[:], t.Authority[:], t.ID[:], t.Secret[:]}, nil)
}

// ParseJoinToken reads Text; spaces around it and line breaks do not count.
// BAD_REQUEST: it is none.
func ParseJoinToken(text string) (t JoinToken, err error) {
	rest, ok := strings.CutPrefix(strings.TrimSpace(text), tokenPrefix)
	raw, err := base64.RawURLEncoding.Strict().DecodeString(rest)
	if !ok || err != nil || len(raw) != tokenBytes+tokenSumBytes {
		return t, wire.Errorf(wire.Code_BAD_REQUEST, "that is no join token: copy the whole line that `baton join-token create` prints, from %q on", tokenPrefix)
	}
	b, sum := raw[:tokenBytes], sha256.Sum256(raw[:tokenBytes])
	if !bytes.Equal(sum[:tokenSumBytes], raw[tokenBytes:]) {
		return t, wire.Errorf(wire.Code_BAD_REQUEST, "the join token is damaged: copy the whole line that `baton join-token create` printed once more")
	}
	for _, part := range [][]byte{t.Cluster[:], t.Authority[:], t.ID[:], t.Secret[:]} {
		b = b[copy(part, b):]
	}
	return t, nil
}

// EnrolClient dials a management port to join with the token. The other end must
// be a node of the token's authority, which the handshake brings along.
// WRONG_CLUSTER: it is of another; then it has not seen the token.
func (t JoinToken) EnrolClient() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		ServerName: ServerName,
		NextProtos: []string{alpnEnrol},
		// There is no authority to verify by before the handshake: see verify.
		InsecureSkipVerify: true,
		VerifyConnection:   func(cs tls.ConnectionState) error { _, err := t.verify(cs); return err },
	}
}

// verify checks who answered, and returns the authority's certificate.
func (t JoinToken) verify(cs tls.ConnectionState) (*x509.Certificate, error) {
	if cs.NegotiatedProtocol != alpnEnrol {
		return nil, wire.Errorf(wire.Code_WRONG_VERSION, "the other end lets nobody join with a token; is it another version?")
	}
	for _, ca := range cs.PeerCertificates {
		if sha256.Sum256(ca.Raw) != t.Authority {
			continue
		}
		pool := x509.NewCertPool()
		pool.AddCert(ca)
		leaf := cs.PeerCertificates[0]
		if _, err := leaf.Verify(x509.VerifyOptions{Roots: pool, DNSName: ServerName}); err != nil {
			return nil, wire.Errorf(wire.Code_NOT_AUTHORISED, "the other end is no node of the token's cluster: %v", err)
		}
		if role, name := roleOfCert(leaf); role != RoleNode {
			return nil, wire.Errorf(wire.Code_NOT_AUTHORISED, "%s answered in place of a node", describe(role, name))
		}
		return ca, nil
	}
	return nil, wire.Errorf(wire.Code_WRONG_CLUSTER, "the node there is of another cluster than the join token: check --join, or make a token there")
}
