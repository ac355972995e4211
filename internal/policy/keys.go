package policy

import "slices"

// KeysKept is how many cookie keys verify: the present one, and those before it.
const KeysKept = 4

// Rotate puts key first among the keys of session cookies, where it signs. Keys that
// were in use still verify: no session is lost when the key changes.
// Without a key there are none.
func Rotate(keys [][]byte, key []byte) [][]byte {
	if key == nil {
		return nil
	}
	all := [][]byte{key}
	for _, k := range keys {
		if !slices.Equal(k, key) && len(all) < KeysKept {
			all = append(all, k)
		}
	}
	return all
}
