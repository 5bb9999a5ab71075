package pki

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/tls"
	"encoding/binary"
	"io"
	"slices"
	"sync"

	"github.com/baton-cluster/baton/wire"
)

// The key ring. The replicated state has one root key per generation, wrapped
// with the nodes' secret, so that neither log nor backup holds a key that is of
// use without it. From a root are derived the keys of the kinds that were
// rotated with it. Generation 0 has no root: its keys are derived from the
// secret itself, so that a node has keys before it has heard of the ring, and a
// cluster that never rotated needs none.

// purposeWrap is that of the key that wraps roots, and begins what is bound to
// the wrapping.
const purposeWrap = "key ring root"

// Ring is the opened key ring. It is immutable.
type Ring struct {
	id   *Identity
	gens []ringGeneration // by rising number, never empty
}

type ringGeneration struct {
	number uint64
	root   []byte // nil: generation 0
	kinds  uint32
	seal   func() []byte // derives once: every move asks for it
}

// NewRoot makes the root key of a generation and wraps it for the cluster with
// that id. The error is randomness', or NOT_AUTHORISED for an operator.
func (id *Identity) NewRoot(clusterID []byte, generation uint64, rand io.Reader) (wrapped []byte, err error) {
	aead, err := id.wrapper()
	if err != nil {
		return nil, err
	}
	buf := make([]byte, wire.RootBytes+aead.NonceSize(), wire.RootBytes+wire.WrappedRootBytes)
	if _, err := io.ReadFull(rand, buf); err != nil {
		return nil, wire.Errorf(wire.Code_INTERNAL, "no randomness for a key: %v", err)
	}
	root, nonce := buf[:wire.RootBytes], buf[wire.RootBytes:]
	return aead.Seal(slices.Clone(nonce), nonce, root, wrapData(clusterID, generation)), nil
}

// OpenRing opens a cluster's key ring, as the state has it. KEYS_UNREADABLE: it
// was wrapped with another secret, or for another cluster.
func (id *Identity) OpenRing(clusterID []byte, keys []*wire.KeyGeneration) (*Ring, error) {
	r := &Ring{id: id}
	if len(keys) == 0 {
		r.add(ringGeneration{kinds: wire.KeyKindsAll})
		return r, nil
	}
	aead, err := id.wrapper()
	if err != nil {
		return nil, err
	}
	for _, k := range keys {
		g := ringGeneration{number: k.GetGeneration(), kinds: k.GetKinds()}
		if g.number > 0 {
			nonce, sealed := aead.NonceSize(), k.GetRoot()
			if len(sealed) == wire.WrappedRootBytes {
				g.root, err = aead.Open(nil, sealed[:nonce], sealed[nonce:], wrapData(clusterID, g.number))
			}
			if err != nil || g.root == nil {
				return nil, wire.Errorf(wire.Code_KEYS_UNREADABLE,
					"generation %d of the cluster's key ring does not open with this node's %s: it is not that of this cluster, or the data is of another; start the node with the PKI files and the data directory that belong together",
					g.number, clusterKeyFile)
			}
		}
		r.add(g)
	}
	return r, nil
}

func (r *Ring) add(g ringGeneration) {
	g.seal = sync.OnceValue(func() []byte { return r.derive(&g, wire.KeyKind_KEY_KIND_SEAL) })
	r.gens = append(r.gens, g)
}

func (id *Identity) wrapper() (cipher.AEAD, error) {
	key := id.ClusterKey(purposeWrap)
	if key == nil {
		return nil, wire.Errorf(wire.Code_NOT_AUTHORISED, "%s has no %s: only nodes handle keys", describe(id.role, id.name), clusterKeyFile)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, wire.Errorf(wire.Code_INTERNAL, "the key ring's cipher: %v", err)
	}
	return cipher.NewGCM(block)
}

func wrapData(clusterID []byte, generation uint64) []byte {
	buf := binary.BigEndian.AppendUint64([]byte(purposeWrap), generation)
	return append(buf, clusterID...)
}

// Generation is the newest.
func (r *Ring) Generation() uint64 { return r.gens[len(r.gens)-1].number }

// derive makes the key of one kind out of a generation.
func (r *Ring) derive(g *ringGeneration, kind wire.KeyKind) []byte {
	if g.root != nil {
		return derive(g.root, "baton key: "+purposeOf[kind])
	}
	if kind == wire.KeyKind_KEY_KIND_SEAL { // it was there before there were generations
		return r.id.ClusterKey(purposeOf[kind])
	}
	return r.id.zeroKey(purposeOf[kind])
}

var purposeOf = map[wire.KeyKind]string{
	wire.KeyKind_KEY_KIND_TICKET:  "session ticket",
	wire.KeyKind_KEY_KIND_ADDRESS: "address token",
	wire.KeyKind_KEY_KIND_SEAL:    "seal",
}

// newest is the newest generation that has kind. There always is one, as the
// state never drops it; a ring without is one that was made up, and has none.
func (r *Ring) newest(kind wire.KeyKind) *ringGeneration {
	for i := len(r.gens) - 1; i >= 0; i-- {
		if r.gens[i].kinds&uint32(kind) != 0 {
			return &r.gens[i]
		}
	}
	none := ringGeneration{}
	none.seal = func() []byte { return r.derive(&none, wire.KeyKind_KEY_KIND_SEAL) }
	return &none
}

// tickets are the keys of session tickets: the first seals, all of them open.
func (r *Ring) tickets() (keys [][32]byte) {
	for i := len(r.gens) - 1; i >= 0; i-- {
		if g := &r.gens[i]; g.kinds&uint32(wire.KeyKind_KEY_KIND_TICKET) != 0 {
			keys = append(keys, [32]byte(r.derive(g, wire.KeyKind_KEY_KIND_TICKET)))
		}
	}
	return keys
}

// AddressToken is the key that seals proofs of a client's address.
func (r *Ring) AddressToken() [32]byte {
	return [32]byte(r.derive(r.newest(wire.KeyKind_KEY_KIND_ADDRESS), wire.KeyKind_KEY_KIND_ADDRESS))
}

// Seal is the key to seal connection states with, not to be changed, and its
// generation.
func (r *Ring) Seal() (generation uint64, key []byte) {
	g := r.newest(wire.KeyKind_KEY_KIND_SEAL)
	return g.number, g.seal()
}

// SealOf is the key of a generation, to open with; not ok if the ring has none
// of it.
func (r *Ring) SealOf(generation uint64) (key []byte, ok bool) {
	for i := range r.gens {
		if g := &r.gens[i]; g.number == generation && g.kinds&uint32(wire.KeyKind_KEY_KIND_SEAL) != 0 {
			return g.seal(), true
		}
	}
	return nil, false
}

// UserTLS is the TLS of a user port, whose ticket keys change while it serves.
type UserTLS struct {
	config *tls.Config // what is listened with
	base   *tls.Config // what a client's handshake uses; has the ticket keys
}

// Config is to be listened with. It must not be changed.
func (u *UserTLS) Config() *tls.Config { return u.config }

// SetRing lets the handshakes that come use the ring's ticket keys.
func (u *UserTLS) SetRing(r *Ring) { u.base.SetSessionTicketKeys(r.tickets()) }
