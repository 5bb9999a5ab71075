package pki

import (
	"bytes"
	"testing"

	"github.com/baton-cluster/baton/wire"
)

// FuzzOpenRing: whatever the state says that a key is, it is opened or refused, and
// only what was wrapped opens.
func FuzzOpenRing(f *testing.F) {
	dir := f.TempDir()
	must(f, Init(dir))
	must(f, Issue(dir, "n1", []string{"127.0.0.1"}))
	id, err := Load(dir, "n1")
	must(f, err)
	cluster := bytes.Repeat([]byte{1}, wire.IDBytes)
	aead, err := id.wrapper()
	must(f, err)
	// One that is the same in each process: the secret is not.
	f.Add(uint64(1), []byte{}, cluster)
	f.Add(uint64(0), []byte{}, []byte{})
	f.Add(uint64(2), bytes.Repeat([]byte{9}, wire.WrappedRootBytes), cluster)
	f.Fuzz(func(t *testing.T, generation uint64, root, clusterID []byte) {
		key := &wire.KeyGeneration{Generation: generation, Kinds: wire.KeyKindsAll, Root: root}
		_, err := id.OpenRing(clusterID, []*wire.KeyGeneration{key})
		if code := wire.CodeOf(err); err != nil && code != wire.Code_KEYS_UNREADABLE {
			t.Fatal(err)
		}
		if err == nil && generation > 0 {
			t.Fatal("what nobody wrapped opens")
		}
		if generation == 0 {
			return
		}
		// And what was wrapped for this cluster and generation does.
		nonce := make([]byte, aead.NonceSize())
		sealed := aead.Seal(nonce, nonce, make([]byte, wire.RootBytes), wrapData(clusterID, generation))
		key.Root = sealed
		if _, err := id.OpenRing(clusterID, []*wire.KeyGeneration{key}); err != nil {
			t.Fatal(err)
		}
		key.Generation++
		if _, err := id.OpenRing(clusterID, []*wire.KeyGeneration{key}); err == nil && key.Generation > 0 {
			t.Fatal("it opens as another generation")
		}
	})
}
