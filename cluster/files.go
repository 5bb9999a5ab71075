package cluster

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// stateFileBytesMax bounds a state file that is read: they hold ids.
const stateFileBytesMax = 64 << 10

// writeFileSync replaces dir/name so that after a power cut either the old or
// the new content is there, and after it returns the new one.
func writeFileSync(dir, name string, data []byte) error {
	tmp := filepath.Join(dir, name+".tmp")
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	if err := os.Rename(tmp, filepath.Join(dir, name)); err != nil {
		return err
	}
	return syncDir(dir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	err = d.Sync()
	if cerr := d.Close(); err == nil {
		err = cerr
	}
	return err
}

func writeJSON(dir, name string, v any) error {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	return writeFileSync(dir, name, append(data, '\n'))
}

// readJSON fills v from dir/name and reports whether the file was there.
func readJSON(dir, name string, v any) (bool, error) {
	f, err := os.Open(filepath.Join(dir, name))
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer func() { _ = f.Close() }()
	data, err := io.ReadAll(io.LimitReader(f, stateFileBytesMax+1))
	if err != nil {
		return false, err
	}
	if len(data) > stateFileBytesMax {
		return false, fmt.Errorf("%s is larger than %d bytes", f.Name(), stateFileBytesMax)
	}
	if err := json.Unmarshal(data, v); err != nil {
		return false, fmt.Errorf("%s does not read: %w", f.Name(), err)
	}
	return true, nil
}
