//! Values under keys that are never mistaken for one another: a key outlives its value without harm.

/// Bits of a generation, so that a [`Key`] fits into an event's 64 bits beside what it is the key of.
pub const GENERATION_BITS: u32 = 24;

/// Names one value of a [`Slab`], and after it nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// Place.
    pub index: u32,
    /// How many values had the place before, modulo 2^[`GENERATION_BITS`].
    pub generation: u32,
}

/// Values under keys, in one block of memory whose places are used again.
#[derive(Debug)]
pub struct Slab<T> {
    places: Vec<Place<T>>,
    free: Vec<u32>,
}

#[derive(Debug)]
struct Place<T> {
    generation: u32,
    value: Option<T>,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self { places: Vec::new(), free: Vec::new() }
    }
}

impl<T> Slab<T> {
    /// Puts a value in.
    ///
    /// # Panics
    /// With 2^32 values in it.
    pub fn insert(&mut self, value: T) -> Key {
        let index = self.free.pop().unwrap_or_else(|| {
            self.places.push(Place { generation: 0, value: None });
            u32::try_from(self.places.len() - 1).expect("descriptors run out first")
        });
        let place = &mut self.places[index as usize];
        debug_assert!(place.value.is_none(), "a free place has a value");
        place.value = Some(value);
        Key { index, generation: place.generation }
    }

    /// The value, while it is there.
    #[must_use]
    pub fn get(&self, key: Key) -> Option<&T> {
        self.places.get(key.index as usize).filter(|place| place.generation == key.generation)?.value.as_ref()
    }

    /// The value, while it is there.
    #[must_use]
    pub fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        self.places.get_mut(key.index as usize).filter(|place| place.generation == key.generation)?.value.as_mut()
    }

    /// Takes the value out.
    pub fn remove(&mut self, key: Key) -> Option<T> {
        let place = self.places.get_mut(key.index as usize).filter(|place| place.generation == key.generation)?;
        let value = place.value.take()?;
        place.generation = (place.generation + 1) % (1 << GENERATION_BITS);
        self.free.push(key.index);
        Some(value)
    }

    /// How many values are in.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "nobody asks")]
    pub fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    /// All values with their keys.
    pub fn iter(&self) -> impl Iterator<Item = (Key, &T)> {
        self.places.iter().enumerate().filter_map(|(index, place)| {
            let index = u32::try_from(index).expect("checked when it was put in");
            place.value.as_ref().map(|value| (Key { index, generation: place.generation }, value))
        })
    }

    /// The keys of all values.
    #[must_use]
    pub fn keys(&self) -> Vec<Key> {
        self.iter().map(|(key, _)| key).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_outlives_its_value_and_finds_no_other() {
        let mut slab = Slab::default();
        let (first, second) = (slab.insert("first"), slab.insert("second"));
        assert_eq!(slab.remove(first), Some("first"));
        let third = slab.insert("third");
        assert_eq!(third.index, first.index, "places are used again");
        assert_eq!(slab.get(first), None);
        assert_eq!(slab.remove(first), None);
        assert_eq!((slab.get(second), slab.get(third)), (Some(&"second"), Some(&"third")));
        assert_eq!((slab.len(), slab.keys()), (2, vec![third, second]));
    }
}
