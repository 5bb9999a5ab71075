package migrate

import (
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"io"

	"github.com/cespare/xxhash/v2"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/baton-cluster/baton/bulk"
	"github.com/baton-cluster/baton/wire"
)

const (
	// SnapshotVersion is the version of ConnectionState that this build makes
	// and takes.
	SnapshotVersion = 1
	// SealKeyBytes is the size of a seal key: AES-256. With random nonces one
	// key is good for 2^32 seals.
	SealKeyBytes = 32
	// CursorsMax: a session has no more clients than dedup windows.
	CursorsMax = wire.ClientWindowsMax
	// clientIDBytesMax bounds a client instance's id in a cursor.
	clientIDBytesMax = 64
	// connectionTextBytesMax bounds the texts of a connection; a certificate's role
	// and name are the longest of them.
	connectionTextBytesMax = 128
	// StateEnvelopeBytesMax is room for everything but live state and streams.
	StateEnvelopeBytesMax = 64 << 10
	// StreamsBytesMax is room for what a session's byte streams carry along: a
	// window of what their clients have not read, argument, cookie and message.
	StreamsBytesMax = wire.StreamsPerSessionMax * (bulk.WindowBytes + 16<<10)
	// StateBytesMax bounds an encoded ConnectionState.
	StateBytesMax = wire.LiveBytesMax + StreamsBytesMax + StateEnvelopeBytesMax

	// A sealed snapshot is the format's version, the generation of its key, a
	// nonce, and the ciphertext with its tag.
	sealFormat    = 2
	sealHeadSize  = 1 + 8
	sealNonceSize = 12
	sealTagSize   = 16
	sealOverhead  = sealHeadSize + sealNonceSize + sealTagSize
	// SealedBytesMax bounds a sealed snapshot.
	SealedBytesMax = StateBytesMax + sealOverhead

	purposeSeal = "baton connection state 1: seal"
)

// Fields of ConnectionState that repeat.
const (
	cursorsField     protowire.Number = 8
	streamsField     protowire.Number = 12
	connectionsField protowire.Number = 15
)

// SealKey is a seal key of one generation of the cluster's key ring.
type SealKey struct {
	Generation uint64
	Key        []byte // SealKeyBytes
}

// Seal encodes and encrypts cs for the one use that b names: cluster,
// migration, session, source epoch and target, all of which cs must name too.
// It returns the digest that CommitPivot carries. The key is known to the
// cluster's nodes only; the seal names its generation. Refusals: SNAPSHOT_TOO_LARGE (the
// migration cannot be made, nothing is lost), SNAPSHOT_BAD (cs does not agree
// with b), INTERNAL (key, randomness).
func Seal(key SealKey, b Binding, cs *wire.ConnectionState, rand io.Reader) (sealed []byte, digest uint64, err error) {
	if err := checkState(b, cs); err != nil {
		return nil, 0, err
	}
	size := proto.Size(cs)
	if size > StateBytesMax {
		return nil, 0, wire.Errorf(wire.Code_SNAPSHOT_TOO_LARGE,
			"connection state has %d bytes, at most %d can move; the session stays where it is", size, StateBytesMax)
	}
	aead, err := newSealer(key.Key)
	if err != nil {
		return nil, 0, err
	}
	out := make([]byte, sealHeadSize+sealNonceSize, size+sealOverhead)
	out[0] = sealFormat
	binary.BigEndian.PutUint64(out[1:], key.Generation)
	if _, err := io.ReadFull(rand, out[sealHeadSize:]); err != nil {
		return nil, 0, wire.Errorf(wire.Code_INTERNAL, "no randomness to seal a snapshot: %v", err)
	}
	out, err = proto.MarshalOptions{}.MarshalAppend(out, cs)
	if err != nil {
		return nil, 0, wire.Errorf(wire.Code_INTERNAL, "connection state does not encode: %v", err)
	}
	// Encrypted where it stands: no second copy of megabytes of live state, and
	// no plaintext left behind.
	head, plain := out[:sealHeadSize+sealNonceSize], out[sealHeadSize+sealNonceSize:]
	return aead.Seal(head, head[sealHeadSize:], plain, sealData(key.Generation, b)), Digest(cs), nil
}

// SealedWith is the generation of the key that a snapshot was sealed with, as it
// says; opening it proves that. Refusals: SNAPSHOT_TOO_LARGE, SNAPSHOT_BAD.
func SealedWith(sealed []byte) (generation uint64, err error) {
	switch {
	case len(sealed) > SealedBytesMax:
		return 0, wire.Errorf(wire.Code_SNAPSHOT_TOO_LARGE,
			"sealed snapshot has %d bytes, the limit is %d", len(sealed), SealedBytesMax)
	case len(sealed) < sealOverhead:
		return 0, wire.Errorf(wire.Code_SNAPSHOT_BAD, "sealed snapshot is cut short at %d bytes", len(sealed))
	case sealed[0] != sealFormat:
		return 0, wire.Errorf(wire.Code_SNAPSHOT_BAD, "sealed snapshot has format %d, this node reads %d", sealed[0], sealFormat)
	}
	return binary.BigEndian.Uint64(sealed[1:]), nil
}

// Unseal opens what Seal made, if it was made with this key for the use that b
// names, and returns it with its digest. sealed is not kept. Refusals:
// SNAPSHOT_TOO_LARGE, SNAPSHOT_BAD (damaged, forged, or sealed with another key or
// for another use), INTERNAL (key).
func Unseal(key SealKey, b Binding, sealed []byte) (*wire.ConnectionState, uint64, error) {
	generation, err := SealedWith(sealed)
	if err != nil {
		return nil, 0, err
	}
	aead, err := newSealer(key.Key)
	if err != nil {
		return nil, 0, err
	}
	rest := sealed[sealHeadSize:]
	plain, err := aead.Open(nil, rest[:sealNonceSize], rest[sealNonceSize:], sealData(generation, b))
	if err != nil {
		return nil, 0, wire.Errorf(wire.Code_SNAPSHOT_BAD,
			"sealed snapshot does not open: it was damaged, or sealed with another key, or for another migration, session, epoch, target or cluster")
	}
	cs, err := decodeState(plain)
	if err != nil {
		return nil, 0, err
	}
	if err := checkState(b, cs); err != nil {
		return nil, 0, err
	}
	return cs, Digest(cs), nil
}

// Digest is the digest of everything in cs. It hashes fields, not encoded
// bytes, because protobuf is not canonical.
func Digest(cs *wire.ConnectionState) uint64 {
	buf := make([]byte, 0, 1024)
	buf = binary.BigEndian.AppendUint64(buf, uint64(cs.GetVersion()))
	buf = appendBytes(buf, cs.GetClusterId())
	buf = binary.BigEndian.AppendUint64(buf, cs.GetMigration())
	buf = appendString(buf, cs.GetSession())
	buf = binary.BigEndian.AppendUint64(buf, cs.GetSourceEpoch())
	buf = appendString(buf, cs.GetTarget())
	buf = binary.BigEndian.AppendUint64(buf, cs.GetChange())
	for _, c := range cs.GetCursors() {
		buf = appendBytes(buf, c.GetClient())
		buf = binary.BigEndian.AppendUint64(buf, c.GetAnswered())
		buf = binary.BigEndian.AppendUint64(buf, c.GetPushSent())
	}
	buf = binary.BigEndian.AppendUint64(buf, uint64(len(cs.GetCursors())))
	if cs.GetHasLive() {
		buf = append(buf, 1)
	} else {
		buf = append(buf, 0)
	}
	buf = appendConnections(buf, cs.GetConnections())
	buf = appendStreams(buf, cs.GetStreams())
	buf = binary.BigEndian.AppendUint64(buf, cs.GetStreamsSince())
	buf = binary.BigEndian.AppendUint64(buf, uint64(len(cs.GetLive())))
	var d xxhash.Digest
	d.Reset()
	_, _ = d.Write(buf)
	_, _ = d.Write(cs.GetLive())
	return d.Sum64()
}

func appendConnections(buf []byte, list []*wire.Connection) []byte {
	for _, c := range list {
		buf = appendBytes(buf, c.GetClient())
		buf = appendString(buf, c.GetIdentity())
		buf = appendString(buf, c.GetAlpn())
		t := c.GetTransport()
		for _, v := range [...]uint64{
			uint64(c.GetTlsVersion()), uint64(c.GetCipherSuite()),
			t.GetMinRttUs(), t.GetSmoothedRttUs(), t.GetLatestRttUs(),
			t.GetBytesSent(), t.GetBytesReceived(), t.GetPacketsLost(),
		} {
			buf = binary.BigEndian.AppendUint64(buf, v)
		}
	}
	return binary.BigEndian.AppendUint64(buf, uint64(len(list)))
}

// checkState is run on both sides of the transfer: a state that breaks a limit
// or names another use is neither sealed nor accepted.
func checkState(b Binding, cs *wire.ConnectionState) error {
	if n := len(cs.GetLive()); n > wire.LiveBytesMax {
		return wire.Errorf(wire.Code_SNAPSHOT_TOO_LARGE,
			"live state has %d bytes, at most %d can move; the session stays where it is", n, wire.LiveBytesMax)
	}
	if n := len(cs.GetCursors()); n > CursorsMax {
		return wire.Errorf(wire.Code_SNAPSHOT_TOO_LARGE, "connection state has %d cursors, the limit is %d", n, CursorsMax)
	}
	for _, c := range cs.GetCursors() {
		if n := len(c.GetClient()); n > clientIDBytesMax {
			return wire.Errorf(wire.Code_SNAPSHOT_BAD, "a cursor's client id has %d bytes, the limit is %d", n, clientIDBytesMax)
		}
	}
	if n := len(cs.GetConnections()); n > CursorsMax {
		return wire.Errorf(wire.Code_SNAPSHOT_TOO_LARGE, "connection state has %d connections, the limit is %d", n, CursorsMax)
	}
	for _, c := range cs.GetConnections() {
		if n := max(len(c.GetClient()), len(c.GetIdentity()), len(c.GetAlpn())); n > connectionTextBytesMax {
			return wire.Errorf(wire.Code_SNAPSHOT_BAD, "a connection's client id, identity or protocol has %d bytes, the limit is %d", n, connectionTextBytesMax)
		}
	}
	if err := checkStreams(cs.GetStreams()); err != nil {
		return err
	}
	switch {
	case cs.GetStreamsSince() > cs.GetSourceEpoch():
		return wire.Errorf(wire.Code_SNAPSHOT_BAD, "connection state has byte streams since epoch %d, which is after its own, %d", cs.GetStreamsSince(), cs.GetSourceEpoch())
	case cs.GetVersion() != SnapshotVersion:
		return wire.Errorf(wire.Code_SNAPSHOT_BAD, "connection state has version %d, this node reads %d", cs.GetVersion(), SnapshotVersion)
	case string(cs.GetClusterId()) != string(b.ClusterID),
		cs.GetMigration() != b.Migration,
		cs.GetSession() != b.Session,
		cs.GetSourceEpoch() != b.SourceEpoch,
		cs.GetTarget() != b.Target.GetWorker():
		return wire.Errorf(wire.Code_SNAPSHOT_BAD, "connection state names another cluster, migration, session, epoch or target than this migration's")
	}
	return nil
}

// decodeState counts before it decodes: an empty cursor takes two bytes encoded
// and a hundred decoded, so the count must not be believed unseen.
func decodeState(plain []byte) (*wire.ConnectionState, error) {
	cursors, streams, connections := 0, 0, 0
	for rest := plain; len(rest) > 0; {
		num, typ, n := protowire.ConsumeTag(rest)
		if n < 0 {
			return nil, wire.Errorf(wire.Code_SNAPSHOT_BAD, "connection state does not decode: %v", protowire.ParseError(n))
		}
		m := protowire.ConsumeFieldValue(num, typ, rest[n:])
		if m < 0 {
			return nil, wire.Errorf(wire.Code_SNAPSHOT_BAD, "connection state does not decode: %v", protowire.ParseError(m))
		}
		if num == cursorsField {
			if cursors++; cursors > CursorsMax {
				return nil, wire.Errorf(wire.Code_SNAPSHOT_TOO_LARGE, "connection state has more than %d cursors", CursorsMax)
			}
		}
		if num == connectionsField {
			if connections++; connections > CursorsMax {
				return nil, wire.Errorf(wire.Code_SNAPSHOT_TOO_LARGE, "connection state has more than %d connections", CursorsMax)
			}
		}
		if num == streamsField {
			if streams++; streams > wire.StreamsPerSessionMax {
				return nil, wire.Errorf(wire.Code_SNAPSHOT_TOO_LARGE, "connection state has more than %d byte streams", wire.StreamsPerSessionMax)
			}
		}
		rest = rest[n+m:]
	}
	cs := &wire.ConnectionState{}
	if err := proto.Unmarshal(plain, cs); err != nil {
		return nil, wire.Errorf(wire.Code_SNAPSHOT_BAD, "connection state does not decode: %v", err)
	}
	return cs, nil
}

// sealData is the additional data of a seal.
func sealData(generation uint64, b Binding) []byte {
	buf := make([]byte, 0, 256)
	buf = append(buf, purposeSeal...)
	buf = binary.BigEndian.AppendUint64(buf, generation)
	buf = appendBytes(buf, b.ClusterID)
	buf = binary.BigEndian.AppendUint64(buf, b.Migration)
	buf = appendString(buf, b.Session)
	buf = binary.BigEndian.AppendUint64(buf, b.SourceEpoch)
	return appendOwner(buf, b.Target)
}

func newSealer(key []byte) (cipher.AEAD, error) {
	if len(key) != SealKeyBytes {
		return nil, wire.Errorf(wire.Code_INTERNAL, "a seal key has %d bytes, this one %d", SealKeyBytes, len(key))
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, wire.Errorf(wire.Code_INTERNAL, "seal key: %v", err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, wire.Errorf(wire.Code_INTERNAL, "seal key: %v", err)
	}
	return aead, nil
}
