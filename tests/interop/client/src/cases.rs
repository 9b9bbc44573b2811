//! Runs cases, and prints a line for each.

use std::{
    panic,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::timeout;

/// A group of cases, with what all their names start with.
#[derive(Clone, Debug)]
pub struct Cases(pub String);

impl Cases {
    /// Runs a case, which fails if it panics or takes too long.
    pub async fn case(&self, name: &str, body: impl Future<Output = ()> + Send + 'static) {
        const LIMIT: Duration = Duration::from_secs(30);
        const LONGEST: usize = 600;
        panic::set_hook(Box::new(|panic| {
            let text = panic.to_string().replace('\n', " ");
            let text = text.chars().take(LONGEST).collect();
            *PANIC.lock().unwrap_or_else(PoisonError::into_inner) = text;
        }));
        let mut task = tokio::spawn(body);
        let prefix = &self.0;
        match timeout(LIMIT, &mut task).await {
            Ok(Ok(())) => println!("ok   {prefix}/{name}"),
            Ok(Err(_)) => {
                let text = PANIC.lock().unwrap_or_else(PoisonError::into_inner);
                println!("FAIL {prefix}/{name}: {text}");
            }
            Err(_) => {
                task.abort();
                println!("FAIL {prefix}/{name}: not over within {LIMIT:?}");
            }
        }
    }
}

/// What the latest panic said.
static PANIC: Mutex<String> = Mutex::new(String::new());
